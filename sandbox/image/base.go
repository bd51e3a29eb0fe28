package image

import (
	"context"
	"fmt"
	"strings"

	"bj/sandbox"
)

// base is what a machine's tools are laid over: a root of the store, or the
// host's own.
type base struct {
	root *Root // nil for the host's
	none error // why tools cannot know what is there, if they cannot
}

// base makes the root of an image that machines run on.
func (s *Store) base(ctx context.Context, i *sandbox.Image, progress func(string)) (base, error) {
	if i == nil && s.Virtual {
		i = Standard()
	}
	switch {
	case i == nil || i.Host:
		return base{}, nil
	case i.Disk != "":
		return base{none: fmt.Errorf("what is installed on the disk of image %s is not known here", i.Name)}, nil
	case !s.Virtual && (i.Systemd || i.Kernel != ""):
		return base{none: fmt.Errorf("image %s boots only in a virtual machine", i.Name)}, nil
	}
	r, err := s.Root(ctx, i, progress)
	return base{root: &r}, err
}

// release is the Debian release of a root.
func (b base) release() (string, error) {
	if b.none != nil {
		return "", b.none
	}
	text, err := readFromTar(b.root.tar, "etc/os-release")
	if err != nil {
		// Mostly a link.
		text, err = readFromTar(b.root.tar, "usr/lib/os-release")
	}
	if err != nil {
		return "", fmt.Errorf("%s does not say which system it is: %w", b.root.About, err)
	}
	id, name := "", ""
	for line := range strings.Lines(string(text)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch k {
		case "ID":
			id = strings.Trim(v, `"`)
		case "VERSION_CODENAME":
			name = strings.Trim(v, `"`)
		}
	}
	if id != "debian" || name == "" {
		return "", fmt.Errorf("%s is no Debian, so that it has no Debian packages", b.root.About)
	}
	return name, nil
}

// isProgram reports whether the root has a program of that name on PATH.
func (b base) isProgram(name string) bool {
	if b.root == nil {
		return isProgram("/", name)
	}
	for _, dir := range pathDirs {
		if found, err := inTar(b.root.tar, dir+"/"+name); found && err == nil {
			return true
		}
	}
	return false
}
