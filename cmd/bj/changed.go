package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path"
	"slices"
	"strings"

	"bj/fleet"
)

// changedSince returns the files of the workspace, relative to it, that differ
// from where the current branch left rev, those that git does not know yet
// included.
func changedSince(ctx context.Context, root, rev string) ([]string, error) {
	git := func(args ...string) ([]string, error) {
		cmd := exec.CommandContext(ctx, "git", append([]string{"-C", root}, args...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if errors.Is(err, exec.ErrNotFound) {
			return nil, withHint(errors.New("--changed-since needs git, which is not there"), "install it: apt-get install git")
		}
		if err != nil {
			words, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
			return nil, fmt.Errorf("asking git what changed since %s: %s", rev, strings.TrimPrefix(words, "fatal: "))
		}
		return slices.DeleteFunc(strings.Split(strings.TrimRight(string(out), "\x00\n"), "\x00"), func(s string) bool { return s == "" }), nil
	}
	if strings.HasPrefix(rev, "-") {
		return nil, usage("--changed-since main", "%q is no revision", rev)
	}
	if _, err := git("rev-parse", "--verify", "--quiet", "--end-of-options", rev+"^{commit}"); err != nil {
		if errors.As(err, new(*failure)) {
			return nil, err
		}
		return nil, usage("a shallow clone may lack it: git fetch --unshallow", "git knows no revision %q here", rev)
	}
	// What rev gained since the branch left it is not this branch's change.
	base := rev
	if b, err := git("merge-base", rev, "HEAD"); err == nil && len(b) == 1 {
		base = b[0]
	}
	changed, err := git("diff", "--name-only", "--no-renames", "--relative", "-z", base)
	if err != nil {
		return nil, err
	}
	fresh, err := git("ls-files", "--others", "--exclude-standard", "-z")
	if err != nil {
		return nil, err
	}
	changed = append(changed, fresh...)
	slices.Sort(changed)
	return slices.Compact(changed), nil
}

// affected returns the recipes that a change of these files can affect: those
// that were made from one, that put one on a machine, or that allow a service
// that is declared in one. Under supply "recipes" they also are those that
// allow a service whose own recipes are affected. A change of bj.star can
// affect all.
func affected(f *fleet.Fleet, recipes []*fleet.Recipe, files []string, supply string) []*fleet.Recipe {
	if slices.Contains(files, "bj.star") {
		return recipes
	}
	hit := map[*fleet.Recipe]bool{}
	stale := map[string]bool{} // services with an affected recipe
	for again := true; again; {
		again = false
		for _, r := range f.Recipes {
			supplied := supply == "recipes" && slices.ContainsFunc(r.Conditions, func(c fleet.Condition) bool { return stale[c.Service] })
			if !hit[r] && (supplied || touched(f, r, files)) {
				hit[r], stale[r.Service], again = true, true, true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(recipes), func(r *fleet.Recipe) bool { return !hit[r] })
}

// touched reports whether any of the files goes into the recipe itself.
func touched(f *fleet.Fleet, r *fleet.Recipe, files []string) bool {
	// under reports whether name, or anything in it, is one of the files.
	under := func(name string) bool {
		if name = path.Clean(name); name == "." {
			return false
		}
		return slices.ContainsFunc(files, func(file string) bool {
			return file == name || strings.HasPrefix(file, name+"/")
		})
	}
	declared := func(service string) bool {
		s := f.Service(service)
		return s != nil && under(s.Pos.File)
	}
	goSource := func(file string) bool {
		return strings.HasSuffix(file, ".go") || path.Base(file) == "go.mod" || path.Base(file) == "go.sum"
	}
	return slices.ContainsFunc(r.Modules, under) ||
		declared(r.Service) ||
		slices.ContainsFunc(r.Conditions, func(c fleet.Condition) bool { return declared(c.Service) }) ||
		slices.ContainsFunc(r.Files, func(f fleet.File) bool { return under(f.Source) }) ||
		slices.ContainsFunc(r.Secrets, func(s fleet.Secret) bool { return under(s.Source) }) ||
		slices.ContainsFunc(r.Hardware, func(h *fleet.Hardware) bool {
			return h.Image != nil && (under(h.Image.OCI) || under(h.Image.Disk))
		}) ||
		slices.ContainsFunc(r.Tools, func(t fleet.Tool) bool {
			return under(t.Path) || strings.HasPrefix(t.Go, "./") && slices.ContainsFunc(files, goSource)
		})
}
