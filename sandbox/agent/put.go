package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// incoming is a file that is being written. It appears under its own name only
// when it is whole.
type incoming struct {
	put
	tmp  *os.File
	left int64
	err  error // the first; what still comes is thrown away
}

func (g *guest) put(id uint32, m put) error {
	if m.Absent {
		var r reply
		if err := takeAway(m.Path); err != nil {
			r.Error = err.Error()
		}
		return g.out.send(kindReply, id, r)
	}
	if _, taken := g.files[id]; taken || m.Size < 0 {
		return fmt.Errorf("%w: file %d of %d bytes", errFrame, id, m.Size)
	}
	in := &incoming{put: m, left: m.Size}
	g.files[id] = in
	if !filepath.IsAbs(m.Path) {
		in.err = errors.New("the path is not absolute")
	} else if in.err = os.MkdirAll(filepath.Dir(m.Path), 0o755); in.err == nil {
		in.tmp, in.err = os.CreateTemp(filepath.Dir(m.Path), ".bj-*")
	}
	return g.data(id, nil)
}

func (g *guest) data(id uint32, b []byte) error {
	in := g.files[id]
	if in == nil || int64(len(b)) > in.left {
		return fmt.Errorf("%w: %d bytes for file %d", errFrame, len(b), id)
	}
	in.left -= int64(len(b))
	if in.err == nil {
		_, in.err = in.tmp.Write(b)
	}
	if in.left > 0 {
		return nil
	}
	delete(g.files, id)
	if err := in.finish(); err != nil {
		return g.out.send(kindReply, id, reply{Error: fmt.Sprintf("writing %s: %v", in.Path, err)})
	}
	return g.out.send(kindReply, id, reply{})
}

func (in *incoming) finish() error {
	if in.tmp == nil {
		return in.err
	}
	err := in.err
	if err == nil {
		err = in.tmp.Chmod(fileMode(in.Mode))
	}
	err = errors.Join(err, in.tmp.Close())
	if err == nil {
		err = os.Rename(in.tmp.Name(), in.Path)
	}
	if err != nil {
		os.Remove(in.tmp.Name())
	}
	return err
}

// takeAway removes the files that match a pattern, from the machine's own view of
// its root.
func takeAway(pattern string) error {
	found, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	for _, path := range found {
		err := os.Remove(path)
		if errors.Is(err, os.ErrPermission) {
			// An ordinary user's machine cannot change folders of the host's root. An
			// empty file is no library either.
			err = unix.Mount("/dev/null", path, "", unix.MS_BIND, "")
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("taking away what the recipe does not allow: %w", err)
		}
	}
	return nil
}

// fileMode makes Go's mode of the bits of chmod(2).
func fileMode(m uint32) os.FileMode {
	fm := os.FileMode(m & 0o777)
	for bit, flag := range map[uint32]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
		if m&bit != 0 {
			fm |= flag
		}
	}
	return fm
}

// dropFiles removes what will never be whole.
func (g *guest) dropFiles() {
	for _, in := range g.files {
		in.err = errors.Join(in.err, os.ErrClosed)
		in.finish()
	}
}
