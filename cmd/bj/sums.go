package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/modfile"

	"bj/fleet"
	"bj/run/event"
)

// digest is that of a recipe as it stands, with what its files hold.
func (l *loaded) digest(r *fleet.Recipe) string { return l.digestIn(l.fleet, r) }

// digestIn is digest, of a recipe in a part of the fleet.
func (l *loaded) digestIn(f *fleet.Fleet, r *fleet.Recipe) string {
	return event.Digest(f, r, l.sums.of)
}

// sums are digests of files and folders of a workspace. A file is read again
// only if its size or time have changed.
type sums struct {
	root string

	mu   sync.Mutex
	seen map[string]fileSum // by path
}

type fileSum struct {
	size int64
	time time.Time
	sum  string
}

// of returns a digest of what a file holds, or of a folder: then of all files
// below it and, if it is a Go program's, of the packages of its module that it
// is made of. It is empty if there is something that cannot be read.
func (s *sums) of(name string) string {
	if !filepath.IsAbs(name) {
		name = filepath.Join(s.root, filepath.FromSlash(name))
	}
	info, err := os.Stat(name)
	if err != nil {
		return ""
	}
	if !info.IsDir() {
		return s.file(name, info)
	}
	files, err := s.program(name)
	if err != nil {
		return ""
	}
	all := sha256.New()
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			return ""
		}
		rel, err := filepath.Rel(s.root, file)
		if err != nil {
			return ""
		}
		fmt.Fprintf(all, "%q %s\n", filepath.ToSlash(rel), s.file(file, info))
	}
	return hex.EncodeToString(all.Sum(nil))
}

func (s *sums) file(name string, info fs.FileInfo) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x, ok := s.seen[name]; ok && x.size == info.Size() && x.time.Equal(info.ModTime()) {
		return x.sum
	}
	if !info.Mode().IsRegular() {
		return ""
	}
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return ""
	}
	if s.seen == nil {
		s.seen = map[string]fileSum{}
	}
	x := fileSum{info.Size(), info.ModTime(), hex.EncodeToString(h.Sum(nil))}
	s.seen[name] = x
	return x.sum
}

// program returns the files below dir, in order, and those of the packages of
// the same Go module that the packages there import.
func (s *sums) program(dir string) ([]string, error) {
	files := map[string]bool{}
	below := func(dir string) error {
		return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && !strings.HasSuffix(name, "_test.go") {
				files[name] = true
			}
			return err
		})
	}
	root, module := moduleOf(dir)
	todo, done := []string{dir}, map[string]bool{}
	for len(todo) > 0 {
		next := todo[0]
		todo = todo[1:]
		if done[next] {
			continue
		}
		done[next] = true
		if err := below(next); err != nil {
			return nil, err
		}
		sources, err := filepath.Glob(filepath.Join(next, "*.go"))
		if err != nil {
			return nil, err
		}
		for _, source := range sources {
			// What does not parse will not build.
			parsed, err := parser.ParseFile(token.NewFileSet(), source, nil, parser.ImportsOnly)
			if err != nil || strings.HasSuffix(source, "_test.go") {
				continue
			}
			for _, i := range parsed.Imports {
				if imported, err := strconv.Unquote(i.Path.Value); err == nil && module != "" && strings.HasPrefix(imported, module+"/") {
					todo = append(todo, filepath.Join(root, filepath.FromSlash(strings.TrimPrefix(imported, module+"/"))))
				}
			}
		}
	}
	if root != "" {
		files[filepath.Join(root, "go.mod")] = true // versions of all else
	}
	var out []string
	for name := range files {
		out = append(out, name)
	}
	slices.SortFunc(out, cmp.Compare)
	return out, nil
}

// moduleOf returns the folder and the name of the Go module that a folder is in;
// both are empty outside of any.
func moduleOf(dir string) (root, module string) {
	for {
		if data, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil {
			return dir, modfile.ModulePath(data)
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", ""
		}
		dir = up
	}
}
