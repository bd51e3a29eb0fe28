package image

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Layer returns a squashfs with the files of a folder, to be laid over a root.
// The folder is one that Stage has made: what is in it never changes.
func (s *Store) Layer(ctx context.Context, folder string, progress func(string)) (string, error) {
	m, err := s.cached(ctx, "squashfs 1 of the folder "+folder, progress, func(work string) (made, error) {
		archive := filepath.Join(work, "tar")
		f, err := os.Create(archive)
		if err != nil {
			return made{}, err
		}
		if err := errors.Join(writeTar(ctx, f, folder), f.Close()); err != nil {
			return made{}, err
		}
		tmp := filepath.Join(work, "layer")
		if err := writeSquashfs(ctx, archive, tmp); err != nil {
			return made{}, err
		}
		return s.keepData(tmp, "layer "+filepath.Base(folder))
	})
	if err != nil {
		return "", err
	}
	return s.source(m), s.touch(m.Digest)
}

// writeTar writes a folder's files, as root's unless they are somebody's.
func writeTar(ctx context.Context, to io.Writer, folder string) error {
	w := tar.NewWriter(to)
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == folder {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		target := ""
		if fi.Mode()&fs.ModeSymlink != 0 {
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(fi, target)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		h.Name = filepath.ToSlash(rel)
		if d.IsDir() {
			h.Name += "/"
		}
		if err := w.WriteHeader(h); err != nil || !fi.Mode().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
	return errors.Join(err, w.Close())
}
