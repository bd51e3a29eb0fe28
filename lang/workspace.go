package lang

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

// SettingsFile marks the root of a workspace, and holds its settings.
const SettingsFile = "bj.star"

// Workspace is a tree of packages below a folder that holds a SettingsFile.
type Workspace struct {
	Root string // absolute, with the host's separators
}

// ErrNoWorkspace is what FindWorkspace returns above every workspace.
var ErrNoWorkspace = errors.New("no bj.star here or in any folder above")

// FindWorkspace returns the workspace that dir is in: the nearest folder
// upwards that holds bj.star.
func FindWorkspace(dir string) (*Workspace, error) {
	start, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("finding workspace: %w", err)
	}
	if _, err := os.Stat(start); err != nil {
		return nil, fmt.Errorf("finding workspace: %w", err)
	}
	for d := start; ; {
		if isFile(filepath.Join(d, SettingsFile)) {
			return &Workspace{Root: d}, nil
		}
		up := filepath.Dir(d)
		if up == d {
			return nil, fmt.Errorf("finding workspace of %s: %w", start, ErrNoWorkspace)
		}
		d = up
	}
}

func isFile(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular()
}

// PackageOf returns the package of a folder, or an error if it is outside.
func (w *Workspace) PackageOf(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("finding package: %w", err)
	}
	rel, err := filepath.Rel(w.Root, abs)
	if err != nil || rel == ".." || strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		return "", fmt.Errorf("finding package: %s is outside of the workspace %s", abs, w.Root)
	}
	if rel == "." {
		return "", nil
	}
	return filepath.ToSlash(rel), nil
}

// Path returns where a file of the workspace lies on the host.
func (w *Workspace) Path(file string) string {
	return filepath.Join(w.Root, filepath.FromSlash(file))
}

// skipFolder reports whether a folder of that name holds no packages.
func skipFolder(name string) bool {
	return strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || strings.HasPrefix(name, "bazel-")
}

// isPackageFile reports whether a file of that name belongs to its package.
func isPackageFile(name string) bool {
	return strings.HasSuffix(name, ".star") && !strings.HasSuffix(name, "_test.star") && name != SettingsFile && name != ".star"
}

// Files returns every package file, relative to the root, sorted.
func (w *Workspace) Files() ([]string, error) {
	var (
		g     errgroup.Group
		mu    sync.Mutex
		files []string
	)
	g.SetLimit(2 * runtime.GOMAXPROCS(0))
	var walk func(dir, pkg string) error
	walk = func(dir, pkg string) error {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		if pkg != "" && slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == SettingsFile && !e.IsDir() }) {
			return nil // a workspace of its own
		}
		var found []string
		for _, e := range entries {
			name := e.Name()
			switch {
			case e.IsDir():
				if skipFolder(name) {
					continue
				}
				down := func() error { return walk(dir+string(filepath.Separator)+name, joinPackage(pkg, name)) }
				if !g.TryGo(down) {
					if err := down(); err != nil {
						return err
					}
				}
			case !isPackageFile(name):
			case e.Type().IsRegular(), e.Type()&fs.ModeSymlink != 0 && isFile(filepath.Join(dir, name)):
				found = append(found, joinPackage(pkg, name))
			}
		}
		mu.Lock()
		defer mu.Unlock()
		files = append(files, found...)
		return nil
	}
	err := walk(w.Root, "")
	if err2 := g.Wait(); err == nil {
		err = err2
	}
	if err != nil {
		return nil, fmt.Errorf("listing packages: %w", err)
	}
	slices.Sort(files)
	return files, nil
}

// packageOfFile returns the package of a module's file name.
func packageOfFile(file string) string {
	dir := path.Dir(file)
	if dir == "." {
		return ""
	}
	return dir
}
