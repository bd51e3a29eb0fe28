package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"bj/lang"
)

// starFiles returns the Starlark files that args name, relative to the
// workspace, sorted: files, folders with all below them, and patterns. Without
// args it is all below the current folder.
func starFiles(e *env, ws *lang.Workspace, args []string) ([]string, error) {
	if len(args) == 0 {
		args = []string{"."}
	}
	all, err := walkStar(ws.Root)
	if err != nil {
		return nil, err
	}
	var chosen []string
	for _, arg := range args {
		var match func(file string) bool
		if strings.HasPrefix(arg, "//") {
			p, err := lang.ParsePattern(arg, "")
			var bad *lang.LabelError
			if errors.As(err, &bad) {
				return nil, usage(bad.Hint, "%w", err)
			}
			if err != nil {
				return nil, err
			}
			match = func(file string) bool { return p.Covers(strings.TrimPrefix(path.Dir(file), ".")) }
		} else {
			if _, err := os.Stat(e.path(arg)); err != nil {
				return nil, usage("name files, folders or patterns", "finding %s: %w", arg, err)
			}
			rel, err := ws.PackageOf(e.path(arg))
			if err != nil {
				return nil, usage("", "%w", err)
			}
			match = func(file string) bool { return rel == "" || file == rel || strings.HasPrefix(file, rel+"/") }
		}
		before := len(chosen)
		for _, file := range all {
			if match(file) {
				chosen = append(chosen, file)
			}
		}
		if len(chosen) == before {
			return nil, nothing("", "%s names no Starlark file", arg)
		}
	}
	slices.Sort(chosen)
	return slices.Compact(chosen), nil
}

// walkStar returns every Starlark file of the workspace, those of tests and
// bj.star included, relative to its root, with slashes.
func walkStar(root string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if !d.IsDir() {
			if info, err := os.Stat(name); strings.HasSuffix(base, ".star") && err == nil && info.Mode().IsRegular() { // links too: Bazel makes nothing else
				rel, err := filepath.Rel(root, name)
				files = append(files, filepath.ToSlash(rel))
				return err
			}
			return nil
		}
		if name == root {
			return nil
		}
		if strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || strings.HasPrefix(base, "bazel-") {
			return fs.SkipDir
		}
		if _, err := os.Stat(filepath.Join(name, lang.SettingsFile)); err == nil {
			return fs.SkipDir // a workspace of its own
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing files: %w", err)
	}
	return files, nil
}
