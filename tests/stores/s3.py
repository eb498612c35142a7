#!/usr/bin/env python3
"""A client of S3 servers that is independent of Larder's, with the standard library only.

  s3.py URL create               creates the bucket if it does not exist
  s3.py URL list [PREFIX]        prints size and key of each object
  s3.py URL uploads              prints the key of each upload that has not ended
  s3.py URL get KEY              writes an object to standard output
  s3.py URL put KEY              creates or replaces an object with standard input
  s3.py URL sync PREFIX DIR      copies all objects into a directory, as `aws s3 sync` does

URL is http://ID:SECRET@HOST:PORT/BUCKET. Exit status: 0, or 1 with the response of the server.
"""
import datetime
import hashlib
import hmac
import http.client
import os
import sys
import urllib.parse
import xml.etree.ElementTree as ElementTree

REGION = "us-east-1"
TIMEOUT_SECONDS = 60


class Refused(Exception):
    pass


def hmac_of(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


class Bucket:
    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.id, self.secret = parts.username, parts.password
        self.host, self.bucket = f"{parts.hostname}:{parts.port}", parts.path
        self.connection = http.client.HTTPConnection(self.host, timeout=TIMEOUT_SECONDS)

    def request(self, method, key="", query=(), body=b""):
        """Signs (Signature Version 4) and sends a request. Returns the body of the response."""
        path = urllib.parse.quote(self.bucket + ("/" + key if key else ""))
        query = "&".join(f"{name}={urllib.parse.quote(value, safe='')}" for name, value in sorted(query))
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        headers = {"host": self.host, "x-amz-content-sha256": hashlib.sha256(body).hexdigest(), "x-amz-date": now}
        names = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        canonical = "\n".join([method, path, query, lines, names, headers["x-amz-content-sha256"]])
        scope = f"{now[:8]}/{REGION}/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        signing = ("AWS4" + self.secret).encode()
        for part in scope.split("/"):
            signing = hmac_of(signing, part)
        signature = hmac_of(signing, text).hex()
        headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={self.id}/{scope}, SignedHeaders={names}, Signature={signature}"
        self.connection.request(method, path + ("?" + query if query else ""), body or None, headers)
        response = self.connection.getresponse()
        answer = response.read()
        if response.status >= 300:
            raise Refused(f"{method} {path}: {response.status} {answer[:300].decode(errors='replace')}")
        return answer

    def pages(self, query, marks):
        """The pages of a list. `marks` says which elements of a page are which parameters of the next request."""
        more = {}
        while True:
            page = ElementTree.fromstring(self.request("GET", query=[*query, *more.items()]))
            # The servers disagree about the namespace.
            for element in page.iter():
                element.tag = element.tag.rpartition("}")[2]
            yield page
            if page.findtext("IsTruncated") != "true":
                return
            more = {name: page.findtext(tag) or "" for tag, name in marks.items()}

    def objects(self, prefix):
        query = [("list-type", "2"), ("prefix", prefix)]
        for page in self.pages(query, {"NextContinuationToken": "continuation-token"}):
            for found in page.findall("Contents"):
                yield int(found.findtext("Size")), found.findtext("Key")

    def uploads(self):
        marks = {"NextKeyMarker": "key-marker", "NextUploadIdMarker": "upload-id-marker"}
        for page in self.pages([("uploads", "")], marks):
            for found in page.findall("Upload"):
                yield found.findtext("Key")


def main(url, command, *rest):
    bucket = Bucket(url)
    if command == "create":
        try:
            bucket.request("PUT")
        except Refused as refused:
            if "BucketAlready" not in str(refused):
                raise
    elif command == "list":
        for size, key in bucket.objects(*rest or ("",)):
            print(size, key)
    elif command == "uploads":
        for key in bucket.uploads():
            print(key)
    elif command == "get":
        sys.stdout.buffer.write(bucket.request("GET", *rest))
    elif command == "put":
        bucket.request("PUT", *rest, body=sys.stdin.buffer.read())
    elif command == "sync":
        prefix, directory = rest
        for _, key in bucket.objects(prefix):
            path = os.path.join(directory, key[len(prefix):])
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(bucket.request("GET", key))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (Refused, OSError) as error:
        sys.exit(f"s3.py: {error}")
