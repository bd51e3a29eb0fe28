package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// readFromTar returns what a file of a tar holds, which must be small.
func readFromTar(file, name string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for t := tar.NewReader(f); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil, &fs.PathError{Op: "reading", Path: name, Err: fs.ErrNotExist}
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeReg && tarName(h.Name) == name {
			return io.ReadAll(io.LimitReader(t, 64<<20))
		}
	}
}

func tarName(name string) string { return path.Clean(strings.TrimLeft(name, "/")) }

// inTar reports whether a tar holds a file or a link of that name.
func inTar(file, name string) (bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	for t := tar.NewReader(f); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if h.Typeflag != tar.TypeDir && tarName(h.Name) == name {
			return true, nil
		}
	}
}

// hasShell reports as an error that a root has no /bin/sh.
func hasShell(file string) error {
	if _, ok, err := inRoot(file, "bin/sh"); err != nil || ok {
		return err
	}
	return errors.New("it has no /bin/sh")
}

// hasSystemd reports as an error that a root cannot be booted by its systemd.
func hasSystemd(file string) error {
	target, ok, err := inRoot(file, "sbin/init")
	switch {
	case err != nil:
		return err
	case !ok:
		return errors.New("it has no /sbin/init")
	case path.Base(target) != "systemd":
		return fmt.Errorf("its /sbin/init is /%s, and not systemd", target)
	}
	return nil
}

// inRoot looks for a program of a tar, and returns where its links lead.
func inRoot(file, name string) (target string, ok bool, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	links, files := map[string]string{}, map[string]bool{}
	for t := tar.NewReader(f); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", false, err
		}
		switch name := tarName(h.Name); h.Typeflag {
		case tar.TypeSymlink:
			links[name] = h.Linkname
		case tar.TypeReg:
			files[name] = h.Mode&0o111 != 0
		case tar.TypeLink:
			files[name] = files[tarName(h.Linkname)]
			if to, ok := links[tarName(h.Linkname)]; ok {
				links[name] = to
			}
		}
	}
	target = follow(links, name)
	return target, files[target], nil
}

// follow resolves the links of a tar in name.
func follow(links map[string]string, name string) string {
	for range 40 {
		parts, next := strings.Split(name, "/"), ""
		for i := range parts {
			prefix := strings.Join(parts[:i+1], "/")
			to, ok := links[prefix]
			if !ok {
				continue
			}
			if !path.IsAbs(to) {
				to = path.Join("/", path.Dir(prefix), to)
			}
			next = tarName(path.Join(append([]string{to}, parts[i+1:]...)...))
			break
		}
		if next == "" {
			return name
		}
		name = next
	}
	return fmt.Sprintf("%s, a loop", name)
}
