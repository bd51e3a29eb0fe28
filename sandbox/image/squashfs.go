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
	"strings"
	"time"

	"github.com/KarpelesLab/squashfs"
)

// writeSquashfs makes a squashfs of a tar. Devices are left out: machines have
// their own. The content of files is in memory until it is written.
func writeSquashfs(ctx context.Context, tarFile, to string) error {
	in, err := os.Open(tarFile)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	// Without the library's build tag for it, zstd is only what the superblock
	// names: everything is stored as it is.
	w, err := squashfs.NewWriter(out, squashfs.WithCompression(squashfs.ZSTD), squashfs.WithModTime(time.Unix(1, 0)))
	if err != nil {
		return err
	}
	made := map[string]bool{".": true}
	var folder func(name string, mode fs.FileMode) error
	folder = func(name string, mode fs.FileMode) error {
		if made[name] {
			return nil
		}
		if err := folder(path.Dir(name), 0o755); err != nil {
			return err
		}
		made[name] = true
		return w.AddDirectory(name, mode)
	}
	for t := tar.NewReader(stopReader{ctx, in}); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name := tarName(h.Name)
		if err := folder(path.Dir(name), 0o755); err != nil {
			return fmt.Errorf("adding %s: %w", h.Name, err)
		}
		switch {
		case h.Typeflag == tar.TypeDir:
			// This library gives folders neither a sticky bit nor a group's: the
			// machine itself sets them on /tmp and /var/tmp.
			err = folder(name, fileMode(h.Mode))
		case made[name]:
			continue // what an earlier entry made, which tars of images do not have
		case h.Typeflag == tar.TypeReg:
			var data []byte
			if data, err = io.ReadAll(t); err == nil {
				err = w.AddFile(name, data, fileMode(h.Mode))
			}
		case h.Typeflag == tar.TypeSymlink:
			err = w.AddSymlink(name, h.Linkname)
		case h.Typeflag == tar.TypeLink:
			err = w.CloneInode(name, tarName(h.Linkname))
		default:
			continue
		}
		made[name] = true
		if err == nil {
			err = w.SetOwner(name, uint32(h.Uid), uint32(h.Gid))
		}
		if err == nil {
			err = w.SetModTime(name, h.ModTime)
		}
		for key, value := range h.PAXRecords {
			if attr, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok && err == nil {
				err = w.SetXattr(name, attr, []byte(value))
			}
		}
		if err != nil {
			return fmt.Errorf("adding %s: %w", h.Name, err)
		}
	}
	if err := w.Finalize(); err != nil {
		return err
	}
	// A disk has whole sectors.
	st, err := out.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate((st.Size() + 4095) &^ 4095); err != nil {
		return err
	}
	return out.Close()
}

// fileMode is a tar's mode as Go writes modes.
func fileMode(mode int64) fs.FileMode {
	m := fs.FileMode(mode).Perm()
	for bit, b := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= b
		}
	}
	return m
}
