//! `WWW-Authenticate`: the authentication that a registry demands.
//!
//! RFC 9110, section 11.6.1. The header may occur several times, one line may contain several challenges, values may be
//! tokens or quoted strings, and quoted strings may contain commas.

/// One challenge: a scheme and its parameters, with names in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::upstream) struct Challenge {
    pub(super) scheme: String,
    pub(super) parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The value of a parameter.
    pub(in crate::upstream) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(each, _)| each == name).map(|(_, value)| value.as_str())
    }

    /// The size of its texts.
    pub(super) fn bytes(&self) -> usize {
        let parameters = self
            .parameters
            .iter()
            .map(|(name, value)| size_of::<(String, String)>() + name.len() + value.len());
        self.scheme.len() + parameters.sum::<usize>()
    }

    /// Whether one of the challenges demands user and password.
    pub(in crate::upstream) fn wants_basic<'a>(lines: impl IntoIterator<Item = &'a str>) -> bool {
        lines.into_iter().flat_map(parse).any(|challenge| challenge.scheme == "basic")
    }

    /// The first bearer challenge in the lines of a header.
    pub(in crate::upstream) fn bearer<'a>(
        lines: impl IntoIterator<Item = &'a str>,
    ) -> Option<Challenge> {
        let mut challenges = lines.into_iter().flat_map(parse);
        challenges.find(|challenge| challenge.scheme == "bearer")
    }
}

/// Parses one line up to the first error. The challenges before it count.
fn parse(line: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut scanner = Scanner { rest: line };
    loop {
        scanner.skip(|char| char.is_ascii_whitespace() || char == ',');
        let name = scanner.take(is_token);
        if name.is_empty() {
            return challenges;
        }
        scanner.skip(|char| char == ' ' || char == '\t');
        match (scanner.eat('='), challenges.last_mut()) {
            // `name=value` belongs to the current challenge; a name alone begins a new one.
            (true, Some(challenge)) => {
                scanner.skip(|char| char == ' ' || char == '\t');
                let Some(value) = scanner.value() else { return challenges };
                challenge.parameters.push((name.to_ascii_lowercase(), value));
            }
            (true, None) => return challenges,
            (false, _) => {
                let scheme = name.to_ascii_lowercase();
                challenges.push(Challenge { scheme, parameters: Vec::new() });
            }
        }
    }
}

struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn take(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|char| !belongs(char)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn skip(&mut self, belongs: impl Fn(char) -> bool) {
        self.take(belongs);
    }

    fn eat(&mut self, char: char) -> bool {
        match self.rest.strip_prefix(char) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// A token or a quoted string. `None` if a quoted string does not end.
    fn value(&mut self) -> Option<String> {
        if !self.eat('"') {
            return Some(self.take(is_token).to_owned());
        }
        let mut value = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, char)) = chars.next() {
            match char {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(chars.next()?.1),
                _ => value.push(char),
            }
        }
        None
    }
}

/// RFC 9110 `tchar`, and `/` and `:` for servers that do not quote their realm.
fn is_token(char: char) -> bool {
    char.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/:".contains(char)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(lines: &[&str]) -> Option<[Option<String>; 3]> {
        let challenge = Challenge::bearer(lines.iter().copied())?;
        let get = |name| challenge.parameter(name).map(str::to_owned);
        Some([get("realm"), get("service"), get("scope")])
    }

    #[test]
    fn accepted_challenges() {
        let full = ["https://a/t?x=1&y=2", "r.io", "repository:a/b:pull,push"]
            .map(|text| Some(text.to_owned()));
        let table: [&[&str]; 7] = [
            &[
                r#"Bearer realm="https://a/t?x=1&y=2",service="r.io",scope="repository:a/b:pull,push""#,
            ],
            &[
                r#"bearer REALM="https://a/t?x=1&y=2" , Service="r.io" ,  scope="repository:a/b:pull,push""#,
            ],
            &[
                r#"Basic realm="x, y=z", Bearer realm="https://a/t?x=1&y=2",service=r.io,scope="repository:a/b:pull,push""#,
            ],
            &[
                r#"Bearer realm="https://a/t?x=1&y=2",service="r.io",scope="repository:a/b:pull,push", Basic realm="x""#,
            ],
            &[
                "Negotiate",
                r#"Bearer service="r.io",scope="repository:a/b:pull,push",realm="https://a/t?x=1&y=2""#,
            ],
            &[
                "Negotiate, NTLM",
                r#"Bearer realm="https:\/\/a/t?x=1&y=2",service="r.io",scope="repository:a/b:pull,push""#,
            ],
            &[
                r#"Basic realm="unterminated"#,
                r#"Bearer realm = "https://a/t?x=1&y=2",service = r.io,scope="repository:a/b:pull,push""#,
            ],
        ];
        for lines in table {
            assert_eq!(bearer(lines), Some(full.clone()), "{lines:?}");
        }
    }

    #[test]
    fn headers_without_a_bearer_challenge() {
        for line in [
            "",
            "Basic realm=\"x\"",
            "=",
            "realm=\"Bearer\"",
            "\"Bearer\"",
            ", ,",
            "Basic Bearer=x",
        ] {
            assert_eq!(bearer(&[line]), None, "{line}");
        }
    }

    #[test]
    fn a_challenge_may_lack_anything() {
        assert_eq!(bearer(&["Bearer"]), Some([None, None, None]));
        assert_eq!(
            bearer(&["Bearer realm=https://a/t"]),
            Some([Some("https://a/t".into()), None, None])
        );
    }

    proptest::proptest! {
        #[test]
        fn no_header_panics(line in ".{0,200}") {
            let _ = parse(&line);
        }

        #[test]
        fn no_header_like_text_panics(line in r#"(Bearer|Basic|realm|=|"|,| |\\|a){0,40}"#) {
            let _ = parse(&line);
        }
    }
}
