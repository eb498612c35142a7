// Command crio pulls images with the library of CRI-O, in the version of CRI-O 1.37: the parser of registries.conf and of its
// drop-in directory, and the client that tries the mirrors.
package main

import (
	"context"
	"fmt"
	"os"

	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
)

// crio DIRECTORY DESTINATION IMAGE… prints the digest of each image. DIRECTORY is used as /etc/containers.
func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: crio DIRECTORY DESTINATION IMAGE…")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(containers, destination string, images []string) error {
	system := &types.SystemContext{
		SystemRegistriesConfPath:    containers + "/registries.conf",
		SystemRegistriesConfDirPath: containers + "/registries.conf.d",
		DockerPerHostCertDirPath:    containers + "/certs.d",
		OSChoice:                    "linux",
		ArchitectureChoice:          "amd64",
	}
	accept := &signature.Policy{Default: []signature.PolicyRequirement{signature.NewPRInsecureAcceptAnything()}}
	policy, err := signature.NewPolicyContext(accept)
	if err != nil {
		return err
	}
	for _, image := range images {
		from, err := docker.ParseReference("//" + image)
		if err != nil {
			return err
		}
		to, err := directory.NewReference(destination)
		if err != nil {
			return err
		}
		// It copies all layers, and verifies their digests.
		copied, err := copy.Image(context.Background(), policy, to, from, &copy.Options{SourceCtx: system})
		if err != nil {
			return err
		}
		digest, err := manifest.Digest(copied)
		if err != nil {
			return err
		}
		fmt.Println(digest)
	}
	return nil
}
