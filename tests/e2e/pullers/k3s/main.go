// Command k3s pulls images as the parts of k3s and RKE2 that read registries.yaml do: with the parser, and the mirrors, of
// rancher/wharfie. RKE2 pulls its own runtime image with the same code.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/rancher/wharfie/pkg/registries"
	"github.com/sirupsen/logrus"
	"gopkg.in/yaml.v2"
)

// k3s REGISTRIES_YAML IMAGE… prints the digest of each image, whose layers it reads completely.
func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: k3s REGISTRIES_YAML IMAGE…")
		os.Exit(2)
	}
	logrus.SetLevel(logrus.DebugLevel)
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(file string, images []string) error {
	if err := refuseUnknownKeys(file); err != nil {
		return err
	}
	registry, err := registries.GetPrivateRegistries(file)
	if err != nil {
		return err
	}
	for _, image := range images {
		reference, err := name.ParseReference(image)
		if err != nil {
			return err
		}
		// Requests are made by way of the endpoint that answered this one.
		pulled, err := registry.Image(reference)
		if err != nil {
			return err
		}
		layers, err := pulled.Layers()
		if err != nil {
			return err
		}
		for _, layer := range layers {
			content, err := layer.Compressed()
			if err != nil {
				return err
			}
			// The reader verifies the digest.
			if _, err := io.Copy(io.Discard, content); err != nil {
				return err
			}
		}
		digest, err := pulled.Digest()
		if err != nil {
			return err
		}
		fmt.Println(digest)
	}
	return nil
}

// The parser of k3s ignores keys that it does not know.
func refuseUnknownKeys(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return yaml.UnmarshalStrict(text, &registries.Registry{})
}
