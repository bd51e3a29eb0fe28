package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"bj/sandbox"
)

// bazel builds a target of the workspace and copies the program it makes, as
// Bazel's own copy changes with the next build.
func (s *Store) bazel(ctx context.Context, t sandbox.Tool, progress func(string)) ([]sandbox.File, error) {
	env := s.environ(nil)
	cmd, err := lookPath(env, "bazel")
	if err != nil {
		if cmd, err = lookPath(env, "bazelisk"); err != nil {
			return nil, hint(fmt.Errorf("%s is a Bazel target, and there is no bazel on PATH", t.Target),
				fmt.Sprintf("install bazel, or build it yourself and say --tool %s=PATH", t.Name))
		}
	}
	progress(fmt.Sprintf("building %s from %s", t.Name, t.Target))
	if _, err := (command{Dir: s.Workspace, Env: env, Argv: []string{cmd, "build", t.Target}}).run(ctx); err != nil {
		return nil, err
	}
	out, err := command{Dir: s.Workspace, Env: env, Argv: []string{cmd, "cquery", "--output=files", t.Target}}.run(ctx)
	if err != nil {
		return nil, err
	}
	root, err := command{Dir: s.Workspace, Env: env, Argv: []string{cmd, "info", "execution_root"}}.run(ctx)
	if err != nil {
		return nil, err
	}
	files := strings.Fields(out)
	if len(files) != 1 {
		return nil, fmt.Errorf("%s makes %d files, not one: %s", t.Target, len(files), strings.Join(files, ", "))
	}
	id := textDigest("bazel " + s.Workspace + " " + t.Target)
	l, err := s.lock(ctx, id, nil)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	tmp := filepath.Join(s.Dir, "work", id)
	defer os.Remove(tmp)
	if err := copyFile(filepath.Join(strings.TrimSpace(root), files[0]), tmp); err != nil {
		return nil, err
	}
	m, err := s.keep(tmp, t.Target)
	if err != nil {
		return nil, err
	}
	return program(t.Name, s.source(m), m.Digest, m.About), nil
}
