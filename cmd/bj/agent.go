package main

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A machine runs bj itself, with a root of its own where no shared library of
// the host can be counted on. After "go run" with a C compiler around, bj is
// linked dynamically; then a static one is built from the same sources, once,
// and kept in the cache.

// agentFolder is the folder of static programs in the cache.
const agentFolder = "agent"

// staticAgent returns the path of a static bj: this very program if it is one.
// Cache is the cache's folder; say takes a line about what takes long.
func staticAgent(ctx context.Context, cache string, say func(string)) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding bj's own program: %w", err)
	}
	if static, err := isStatic(self); err != nil || static {
		return self, err
	}
	root, err := sourceRoot()
	if err != nil {
		return "", err
	}
	key, err := sourceKey(root)
	if err != nil {
		return "", fmt.Errorf("reading bj's sources: %w", err)
	}
	dir := filepath.Join(cache, agentFolder)
	path := filepath.Join(dir, "bj-"+key)
	if ready(path) {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the cache: %w", err)
	}
	unlock, err := lockFile(ctx, filepath.Join(dir, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if ready(path) { // another process built it meanwhile
		return path, nil
	}
	say("building bj's static agent (once; it is kept in " + dir + ")")
	if err := buildAgent(ctx, root, path); err != nil {
		return "", err
	}
	return path, pruneAgents(dir, path)
}

// isStatic reports whether the program at path asks for no dynamic linker.
func isStatic(path string) (bool, error) {
	f, err := elf.Open(path)
	if err != nil {
		return false, fmt.Errorf("reading bj's own program: %w", err)
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }), nil
}

// ready reports whether path was built, and marks it as used.
func ready(path string) bool {
	now := time.Now()
	return os.Chtimes(path, now, now) == nil
}

// sourceRoot returns the folder of bj's sources: where this program was
// compiled, or else a module bj that the current folder is in.
func sourceRoot() (string, error) {
	var candidates []string
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		candidates = append(candidates, filepath.Dir(filepath.Dir(filepath.Dir(file))))
	}
	if dir, err := os.Getwd(); err == nil {
		for ; ; dir = filepath.Dir(dir) {
			candidates = append(candidates, dir)
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	for _, dir := range candidates {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(mod), "module bj\n") {
			return dir, nil
		}
	}
	return "", withHint(errors.New("this bj is not a static program, and its sources are not here to build one"),
		"build it with: CGO_ENABLED=0 go build ./cmd/bj")
}

// sourceKey is a digest of all that goes into the program.
func sourceKey(root string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOARCH)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			outside := rel == "recipes" || rel == "docs" || rel == "bin" || name == "testdata"
			if outside || rel != "." && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")) {
				return fs.SkipDir
			}
			return nil
		}
		source := strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go")
		embedded := strings.Contains(rel, "/") && strings.HasSuffix(name, ".star")
		if !source && !embedded && rel != "go.mod" && rel != "go.sum" {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		fmt.Fprintln(h, rel)
		_, err = io.Copy(h, f)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)[:10]), err
}

// buildAgent builds cmd/bj of the module in root, to path.
func buildAgent(ctx context.Context, root, path string) error {
	program, err := exec.LookPath("go")
	if err != nil {
		return withHint(errors.New("this bj is not a static program, and Go is not here to build one"),
			"put go on PATH, or build bj with: CGO_ENABLED=0 go build ./cmd/bj")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	part := path + ".part"
	defer os.Remove(part)
	cmd := exec.CommandContext(ctx, program, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", part, "./cmd/bj")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "PWD="+root)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the static agent: %w\n%s", err, strings.TrimSpace(string(out)))
	}
	if err := os.Rename(part, path); err != nil {
		return fmt.Errorf("building the static agent: %w", err)
	}
	return nil
}

// pruneAgents removes programs that were not used for a week.
func pruneAgents(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("pruning the cache: %w", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		path := filepath.Join(dir, e.Name())
		if err != nil || path == keep || e.Name() == "lock" || time.Since(info.ModTime()) < 7*24*time.Hour {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("pruning the cache: %w", err)
		}
	}
	return nil
}

// lockFile takes the lock of the file at path, which is made if need be, and
// waits for it until ctx is done.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking the cache: %w", err)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err {
		case nil:
			return func() { f.Close() }, nil
		case syscall.EWOULDBLOCK, syscall.EINTR:
		default:
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for another bj to build the static agent: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}
