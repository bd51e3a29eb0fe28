package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"bj/sandbox"
)

// How programs are built for a machine: static, and the same bytes wherever
// they are built.
var goFlags = []string{"-trimpath", "-buildvcs=false", "-ldflags=-s -w"}

// goVersions are those that name the same source for ever.
var goVersions = regexp.MustCompile(`^v[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.+-]+)?$`)

// goModule builds module/cmd@version, in a module of its own that requires
// nothing else. That is what `go install` does, but for modules with replace
// lines, which `go install` refuses and a requiring module ignores.
func (s *Store) goModule(ctx context.Context, t sandbox.Tool, progress func(string)) ([]sandbox.File, error) {
	pkg, version, _ := strings.Cut(t.Go, "@")
	if !goVersions.MatchString(version) {
		return nil, hint(fmt.Errorf("go = %q names no exact version", t.Go), fmt.Sprintf("write one, such as %q", pkg+"@v1.2.3"))
	}
	env, goCmd, goVersion, err := s.goTool(ctx, s.Dir, "GOWORK=off", "GOFLAGS=-mod=mod")
	if err != nil {
		return nil, err
	}
	key := fmt.Sprintf("go %s for linux/%s with %s %s", t.Go, runtime.GOARCH, goVersion, strings.Join(goFlags, " "))
	m, err := s.cached(ctx, key, progress, func(work string) (made, error) {
		ctx, release, more, err := s.turn(ctx)
		if err != nil {
			return made{}, err
		}
		defer release()
		start := time.Now()
		progress(fmt.Sprintf("building %s %s%s", t.Name, version, more))
		mod := filepath.Join(work, "module")
		if err := os.Mkdir(mod, 0o755); err != nil {
			return made{}, err
		}
		env := append(slices.Clone(env), "GOTMPDIR="+work) // of a go that is killed nothing stays
		if err := os.WriteFile(filepath.Join(mod, "go.mod"), []byte("module bj.invalid/tool\n\ngo 1.21\n"), 0o644); err != nil {
			return made{}, err
		}
		if _, err := (command{Dir: mod, Env: env, Argv: []string{goCmd, "get", t.Go}}).run(ctx); err != nil {
			if strings.Contains(err.Error(), "does not contain package") {
				return made{}, hint(err, "write the folder of its package main, such as "+fmt.Sprintf("go = %q", "example.org/module/cmd/"+t.Name+"@"+version))
			}
			return made{}, hint(err, "the first build needs the module proxy; a program that is already built can be given with --tool "+t.Name+"=PATH")
		}
		m, err := s.goBuild(ctx, work, command{Dir: mod, Env: env, Argv: []string{goCmd, pkg}}, t.Go+", built with "+goVersion)
		if err == nil {
			progress(fmt.Sprintf("built %s in %s, %s", t.Name, seconds(time.Since(start)), megabytes(m.Size)))
		}
		return m, err
	})
	if err != nil {
		return nil, err
	}
	return program(t.Name, s.source(m), m.Digest, m.About), nil
}

// goLocal builds ./cmd/x of the workspace's own module. What it depends on is
// known to go build alone, so go build is asked every time; and it is shown the
// program of last time, which it leaves as it is when nothing changed.
func (s *Store) goLocal(ctx context.Context, t sandbox.Tool, progress func(string)) ([]sandbox.File, error) {
	env, goCmd, goVersion, err := s.goTool(ctx, s.Workspace)
	if err != nil {
		return nil, err
	}
	id := textDigest("go " + filepath.Join(s.Workspace, t.Go))
	l, err := s.lock(ctx, id, nil)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	work := filepath.Join(s.Dir, "work", id)
	defer removeAll(work)
	if err := errors.Join(removeAll(work), os.MkdirAll(work, 0o755)); err != nil {
		return nil, err
	}
	ctx, release, more, err := s.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	key := "go " + filepath.Join(s.Workspace, t.Go)
	last, known := s.lookup(key)
	known = known && !s.Fresh
	if known {
		out := filepath.Join(work, "out")
		if err := errors.Join(copyFile(s.source(last), out), os.Chmod(out, 0o755)); err != nil {
			return nil, err
		}
	} else {
		progress(fmt.Sprintf("building %s from %s%s", t.Name, t.Go, more))
	}
	start := time.Now()
	env = append(slices.Clone(env), "GOTMPDIR="+work)
	m, err := s.goBuild(ctx, work, command{Dir: s.Workspace, Env: env, Argv: []string{goCmd, "./" + path.Clean(t.Go)}}, t.Go+" of the workspace, built with "+goVersion)
	if err != nil {
		return nil, err
	}
	if !known || m.Digest != last.Digest {
		progress(fmt.Sprintf("built %s in %s, %s", t.Name, seconds(time.Since(start)), megabytes(m.Size)))
	}
	m.Key = key
	if err := s.record(work, m); err != nil {
		return nil, err
	}
	return program(t.Name, s.source(m), m.Digest, m.About), nil
}

// goBuild builds the package c.Argv[1] with the go command c.Argv[0].
func (s *Store) goBuild(ctx context.Context, work string, c command, about string) (made, error) {
	out := filepath.Join(work, "out")
	pkg := c.Argv[1]
	c.Argv = append([]string{c.Argv[0], "build", "-o", out}, goFlags...)
	c.Argv = append(c.Argv, pkg)
	if _, err := c.run(ctx); err != nil {
		return made{}, err
	}
	// A package that is not a program is written as an archive, without a word.
	if st, err := os.Stat(out); err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
		return made{}, fmt.Errorf("%s is not a program (package main)", pkg)
	}
	return s.keep(out, about)
}

// goTool returns the environment for the go command in dir, its path and its
// version, for which go is asked once in each folder. Of what a person has set,
// whatever changes the program is dropped.
func (s *Store) goTool(ctx context.Context, dir string, set ...string) (env []string, goCmd, version string, err error) {
	env = s.environ([]string{"GOFLAGS", "GOWORK", "GOOS", "GOARCH", "CGO_ENABLED", "GOEXPERIMENT", "GOAMD64", "GOARM64"},
		append(set, "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)...)
	goCmd, err = lookPath(env, "go")
	if err != nil {
		return nil, "", "", hint(err, "install Go (apt-get install golang-go), or give the program with --tool NAME=PATH")
	}
	s.goMu.Lock()
	defer s.goMu.Unlock()
	if v := s.goVersions[dir]; v != "" {
		return env, goCmd, v, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, "", "", err
	}
	out, err := command{Dir: dir, Env: env, Argv: []string{goCmd, "env", "GOVERSION"}}.run(ctx)
	if err != nil {
		return nil, "", "", err
	}
	if s.goVersions == nil {
		s.goVersions = map[string]string{}
	}
	s.goVersions[dir] = strings.TrimSpace(out)
	return env, goCmd, s.goVersions[dir], nil
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.0fs", max(1, d.Seconds())) }

func megabytes(n int64) string { return fmt.Sprintf("%d MB", max(1, (n+500_000)/1_000_000)) }
