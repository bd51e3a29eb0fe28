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
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// Root is a root file system that machines start from: a tar in the store, from
// which a folder and a disk are made when a provider asks for them.
type Root struct {
	About  string // for people: "Debian bookworm with zookeeper, 143 packages"
	Digest string // SHA-256 of the tar, in hex
	tar    string
}

// String is the root as a verdict names it: what it is, and which one exactly.
func (r Root) String() string { return r.About + ", sha256:" + r.Digest[:min(12, len(r.Digest))] }

// Standard is the image of machines that name none, where the host's own root
// cannot be theirs: a small Debian of the host's release (or else the stable
// one), with the programs that an operator counts on everywhere.
func Standard() *sandbox.Image {
	s := suite()
	if s == "unknown" || !onDebian() {
		s = "stable"
	}
	return &sandbox.Image{Name: "standard", Suite: s, Debian: []string{
		"ca-certificates", "curl", "iproute2", "iputils-ping", "netcat-openbsd", "openssl", "procps", "python3-minimal",
	}}
}

func onDebian() bool {
	_, err := os.Stat("/etc/debian_version")
	return err == nil
}

// Root returns the root file system of an image, which it makes if the store
// does not have it. The image must be one of debian or oci; a disk has no root
// of ours.
func (s *Store) Root(ctx context.Context, i *sandbox.Image, progress func(string)) (Root, error) {
	if progress == nil {
		progress = func(string) {}
	}
	var m made
	var err error
	switch {
	case i.OCI != "":
		m, err = s.ociRoot(ctx, i, progress)
	case len(i.Debian) > 0:
		m, err = s.debianRoot(ctx, i, progress)
	default:
		err = errors.New("it has no root file system of its own")
	}
	if err != nil {
		e := sandbox.AsError(err, sandbox.CodeLease)
		return Root{}, &sandbox.Error{Code: e.Code, Err: fmt.Errorf("making image %s: %w", i.Name, err), Hint: e.Hint}
	}
	r := Root{About: m.About, Digest: m.Digest, tar: s.source(m)}
	return r, s.touch(m.Digest)
}

// Tree returns a folder with the files of a root, owned by those that the tar
// names; by the caller alone if that is an ordinary user.
func (s *Store) Tree(ctx context.Context, r Root, progress func(string)) (string, error) {
	key := "tree of " + r.Digest
	if os.Geteuid() != 0 {
		key += fmt.Sprintf(", all of it of %d", os.Geteuid())
	}
	m, err := s.cached(ctx, key, progress, func(work string) (made, error) {
		// Programs of other people's that run as root lie there: for nobody else.
		roots := filepath.Join(s.Dir, "trees")
		if err := errors.Join(os.MkdirAll(roots, 0o755), os.MkdirAll(filepath.Join(work, "tree"), 0o700)); err != nil {
			return made{}, err
		}
		shell := filepath.Join(work, "tree", "root")
		if err := os.Mkdir(shell, 0o755); err != nil {
			return made{}, err
		}
		if err := unpack(ctx, r.tar, shell); err != nil {
			return made{}, fmt.Errorf("unpacking %s: %w", r.About, err)
		}
		digest := textDigest(key)
		if err := moveTo(filepath.Join(work, "tree"), filepath.Join(roots, digest)); err != nil && !errors.Is(err, fs.ErrExist) {
			return made{}, err
		}
		return made{Digest: digest, Tree: true, About: r.About}, nil
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(s.source(m), "root"), s.touch(m.Digest)
}

// Squashfs returns a file that holds a root as a squashfs, not compressed: what
// is read from it under emulation costs no more than a copy.
func (s *Store) Squashfs(ctx context.Context, r Root, progress func(string)) (string, error) {
	m, err := s.cached(ctx, "squashfs 1 of "+r.Digest, progress, func(work string) (made, error) {
		tmp := filepath.Join(work, "squashfs")
		if err := writeSquashfs(ctx, r.tar, tmp); err != nil {
			return made{}, fmt.Errorf("making a disk of %s: %w", r.About, err)
		}
		return s.keepData(tmp, r.About)
	})
	if err != nil {
		return "", err
	}
	return s.source(m), s.touch(m.Digest)
}

// stopReader ends with its context.
type stopReader struct {
	ctx context.Context
	r   io.Reader
}

func (r stopReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// unpack makes the files of a tar below dir. Nothing in it, a link least of all,
// leads out of dir. Devices are left out: machines have their own.
func unpack(ctx context.Context, path, dir string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u := unpacker{root: root, owners: os.Geteuid() == 0, modes: map[string]fs.FileMode{}}
	for t := tar.NewReader(stopReader{ctx, f}); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := u.entry(h, t); err != nil {
			return fmt.Errorf("making %s: %w", h.Name, err)
		}
	}
	// Last, since a folder may be one that its owner cannot write to.
	for name, mode := range u.modes {
		if err := root.Chmod(name, mode); err != nil {
			return err
		}
	}
	return nil
}

type unpacker struct {
	root   *os.Root
	owners bool // files are given to their owners
	modes  map[string]fs.FileMode
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	name := path.Clean(strings.TrimLeft(h.Name, "/"))
	if name != "." {
		if err := u.root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		if old, err := u.root.Lstat(name); err == nil && !(old.IsDir() && h.Typeflag == tar.TypeDir) {
			if err := u.root.RemoveAll(name); err != nil {
				return err
			}
		}
	}
	mode := fileMode(h.Mode)
	switch h.Typeflag {
	case tar.TypeDir:
		if name != "." {
			if err := u.root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
		if !u.owners {
			mode |= 0o700 // what its owner may not enter could not be removed either
		}
		u.modes[name] = mode
		return u.own(name, h)
	case tar.TypeReg:
		f, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := io.Copy(f, content); err != nil {
			return err
		}
		if err := u.own(name, h); err != nil {
			return err
		}
		// After the owner, whose change clears these bits.
		if err := f.Chmod(mode); err != nil {
			return err
		}
		for key, value := range h.PAXRecords {
			attr, ok := strings.CutPrefix(key, "SCHILY.xattr.")
			if !ok || strings.HasPrefix(attr, "security.") && !u.owners {
				continue
			}
			if err := unix.Fsetxattr(int(f.Fd()), attr, []byte(value), 0); err != nil && !errors.Is(err, syscall.ENOTSUP) {
				return fmt.Errorf("setting %s: %w", attr, err)
			}
		}
		return f.Close()
	case tar.TypeSymlink:
		if err := u.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return u.own(name, h)
	case tar.TypeLink:
		return u.root.Link(path.Clean(strings.TrimLeft(h.Linkname, "/")), name)
	}
	return nil
}

func (u *unpacker) own(name string, h *tar.Header) error {
	if !u.owners {
		return nil
	}
	return u.root.Lchown(name, h.Uid, h.Gid)
}
