package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"bj/sandbox"
)

// ociRoot makes a root file system of an image in an OCI layout: a folder, as
// "skopeo copy … oci:DIR" writes it. Every blob is checked against its digest
// before any is used. A layout with several images is given as DIR@sha256:…,
// with the digest of one. Of its settings (variables, entry point, user) none
// is taken over: steps are shell scripts, and say themselves what they need.
func (s *Store) ociRoot(ctx context.Context, i *sandbox.Image, progress func(string)) (made, error) {
	dir, digest, _ := strings.Cut(i.OCI, "@")
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(s.Workspace, dir)
	}
	l, err := layout.FromPath(dir)
	if err != nil {
		return made{}, hint(fmt.Errorf("reading the OCI layout %s: %w", dir, err), "it is a folder with index.json and blobs: skopeo copy docker-archive:FILE oci:DIR")
	}
	index, err := l.ImageIndex()
	if err != nil {
		return made{}, fmt.Errorf("reading the OCI layout %s: %w", dir, err)
	}
	image, err := pick(index, digest)
	if err != nil {
		return made{}, hint(fmt.Errorf("choosing an image of the OCI layout %s: %w", dir, err), "name one by its digest: oci = \""+filepath.Base(dir)+"@sha256:...\"")
	}
	hash, err := image.Digest()
	if err != nil {
		return made{}, fmt.Errorf("reading the OCI layout %s: %w", dir, err)
	}
	return s.cached(ctx, "root 2 of the OCI image "+hash.String(), progress, func(work string) (made, error) {
		start := time.Now()
		progress("unpacking the OCI image " + i.OCI)
		if err := validate.Image(image); err != nil {
			if errors.Is(err, fs.ErrPermission) {
				return made{}, hint(fmt.Errorf("checking the OCI layout %s: %w", dir, err), "let the user who runs bj read it: chmod -R a+rX "+dir)
			}
			return made{}, hint(fmt.Errorf("checking the OCI layout %s: %w", dir, err), "a blob is not what its digest says: copy the image again")
		}
		out := filepath.Join(work, "root.tar")
		f, err := os.Create(out)
		if err != nil {
			return made{}, err
		}
		defer f.Close()
		content := mutate.Extract(image)
		defer content.Close()
		if err := withoutIdentity(f, stopReader{ctx, content}); err != nil {
			return made{}, fmt.Errorf("unpacking the OCI layout %s: %w", dir, err)
		}
		if err := f.Close(); err != nil {
			return made{}, err
		}
		if err := hasShell(out); err != nil {
			return made{}, hint(fmt.Errorf("the OCI image %s: %w", i.OCI, err), "steps are scripts of /bin/sh: take an image that has one")
		}
		m, err := s.keepData(out, fmt.Sprintf("OCI image %s@%s", filepath.Base(dir), short(hash)))
		if err == nil {
			progress(fmt.Sprintf("unpacked the OCI image %s in %s, %s", i.OCI, seconds(time.Since(start)), megabytes(m.Size)))
		}
		return m, err
	})
}

// withoutIdentity copies a tar, but for what tells one machine from another: no
// two machines of an image may share that.
func withoutIdentity(to io.Writer, from io.Reader) error {
	own := func(name string) bool {
		name = tarName(name)
		key, _ := path.Match("etc/ssh/ssh_host_*", name)
		return key || name == "var/lib/dbus/machine-id" || name == "var/lib/systemd/random-seed"
	}
	w := tar.NewWriter(to)
	for t := tar.NewReader(from); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return w.Close()
		}
		if err != nil {
			return err
		}
		if own(h.Name) || h.Typeflag == tar.TypeLink && own(h.Linkname) {
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(w, t); err != nil {
			return err
		}
	}
}

func short(h v1.Hash) string { return h.Algorithm + ":" + h.Hex[:12] }

// pick returns the image of an index that is for this machine, and has that
// digest, if one is given. An index may hold others, one for each platform.
func pick(index v1.ImageIndex, digest string) (v1.Image, error) {
	var found []v1.Image
	var have []string
	var look func(x v1.ImageIndex, wanted bool, depth int) error
	look = func(x v1.ImageIndex, wanted bool, depth int) error {
		if depth > 4 {
			return errors.New("its indexes are nested too deeply")
		}
		m, err := x.IndexManifest()
		if err != nil {
			return err
		}
		for _, d := range m.Manifests {
			wanted := wanted || digest == d.Digest.String()
			switch {
			case d.MediaType.IsIndex():
				child, err := x.ImageIndex(d.Digest)
				if err != nil {
					return err
				}
				if err := look(child, wanted, depth+1); err != nil {
					return err
				}
			case d.MediaType.IsImage():
				if p := d.Platform; p != nil && (p.OS != "linux" || p.Architecture != runtime.GOARCH) {
					continue
				}
				have = append(have, d.Digest.String())
				if !wanted {
					continue
				}
				image, err := x.Image(d.Digest)
				if err != nil {
					return err
				}
				found = append(found, image)
			}
		}
		return nil
	}
	if err := look(index, digest == "", 0); err != nil {
		return nil, err
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(have) == 0:
		return nil, fmt.Errorf("it has none for linux/%s", runtime.GOARCH)
	case len(found) == 0:
		return nil, fmt.Errorf("it has no %s, but %s", digest, strings.Join(have, ", "))
	}
	return nil, fmt.Errorf("it has %d: %s", len(found), strings.Join(have, ", "))
}
