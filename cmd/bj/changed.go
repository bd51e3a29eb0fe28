package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"bj/fleet"
	"bj/lang"
	"bj/run"
)

// changes are files, relative to the workspace, with ../ where they lie outside
// of it in the same repository.
type changes struct {
	files []string // that differ
	// ignored are files and folders that git does not keep, such as what was
	// built: nobody knows whether they differ.
	ignored []string
	// code reports whether a folder has Go files, which may embed what lies in
	// it and below.
	code func(dir string) bool
}

// errNoRevision is what git means that says nothing.
var errNoRevision = errors.New("git knows no such revision")

// changedSince returns what differs from where the current branch left rev, files
// that git does not know yet included.
func changedSince(ctx context.Context, root, rev string) (changes, error) {
	c := changes{code: func(dir string) bool {
		found, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(dir), "*.go"))
		return err == nil && len(found) > 0
	}}
	git := func(args ...string) ([]string, error) {
		cmd := exec.CommandContext(ctx, "git", append([]string{"-C", root}, args...)...)
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if errors.Is(err, exec.ErrNotFound) {
			return nil, withHint(errors.New("--changed-since needs git, which is not there"), "install it: apt-get install git")
		}
		if err != nil {
			words, more, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(stderr.String()), "fatal: "), "\n")
			if words == "" {
				return nil, errNoRevision
			}
			err := fmt.Errorf("asking git what changed since %s: %s", rev, words)
			if strings.Contains(words, "not a git repository") {
				return nil, usage("without --changed-since all of the pattern runs", "%w", err)
			}
			if _, advice, ok := strings.Cut(more, "git config "); ok { // of a repository that another user owns
				advice, _, _ = strings.Cut(advice, "\n")
				return nil, withHint(err, "git config "+advice)
			}
			return nil, err
		}
		return slices.DeleteFunc(strings.Split(strings.TrimRight(string(out), "\x00\n"), "\x00"), func(s string) bool { return s == "" }), nil
	}
	if strings.HasPrefix(rev, "-") {
		return c, usage("--changed-since main", "%q is no revision", rev)
	}
	if _, err := git("rev-parse", "--verify", "--quiet", "--end-of-options", rev+"^{commit}"); err != nil {
		if !errors.Is(err, errNoRevision) {
			return c, err
		}
		return c, usage("a shallow clone may lack it: git fetch --unshallow", "git knows no revision %q here", rev)
	}
	// What rev gained since the branch left it is not this branch's change.
	base := rev
	if b, err := git("merge-base", rev, "HEAD"); err == nil && len(b) == 1 {
		base = b[0]
	}
	prefix, err := git("rev-parse", "--show-prefix")
	if err != nil {
		return c, err
	}
	list := func(args ...string) []string {
		if err != nil {
			return nil
		}
		var names []string
		names, err = git(args...)
		for i, name := range names {
			if len(prefix) == 1 { // the workspace is not the whole repository
				if rel, err := filepath.Rel(prefix[0], name); err == nil {
					names[i] = filepath.ToSlash(rel)
				}
			}
		}
		return names
	}
	c.files = append(list("diff", "--name-only", "--no-renames", "--no-ext-diff", "-z", base, "--", ":/"),
		list("ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--", ":/")...)
	c.ignored = list("ls-files", "--others", "--ignored", "--exclude-standard", "--directory", "--full-name", "-z", "--", ":/")
	slices.Sort(c.files)
	c.files = slices.Compact(c.files)
	return c, err
}

// affected returns the recipes that a change can affect: those that were made
// from one of its files, that put one on a machine, or that allow a service that
// was made from one; and those with a tool for which another program is given
// (--tool). Under supply "recipes" they also are those that allow a service
// whose own recipes are affected. A change of bj.star can affect all.
func affected(f *fleet.Fleet, recipes []*fleet.Recipe, c changes, supply string, given map[string]string) []*fleet.Recipe {
	if slices.Contains(c.files, lang.SettingsFile) {
		return recipes
	}
	hit := map[*fleet.Recipe]bool{}
	stale := map[string]bool{} // services with an affected recipe
	for again := true; again; {
		again = false
		for _, r := range f.Recipes {
			supplied := supply == string(run.Recipes) && slices.ContainsFunc(r.Conditions, func(c fleet.Condition) bool { return stale[c.Service] })
			if !hit[r] && (supplied || c.touch(f, r, given)) {
				hit[r], stale[r.Service], again = true, true, true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(recipes), func(r *fleet.Recipe) bool { return !hit[r] })
}

// touch reports whether any of the files goes into the recipe itself, as far as
// can be told: where it cannot, it does.
func (c changes) touch(f *fleet.Fleet, r *fleet.Recipe, given map[string]string) bool {
	declared := func(service string) bool {
		s := f.Service(service)
		return s != nil && (slices.ContainsFunc(s.Modules, c.under) || c.under(s.Known))
	}
	image := func(i *fleet.Image) bool {
		return i != nil && (c.under(i.OCI) || c.under(i.Disk) || c.under(i.Kernel))
	}
	return slices.ContainsFunc(r.Modules, c.under) ||
		declared(r.Service) ||
		slices.ContainsFunc(r.Conditions, func(x fleet.Condition) bool { return declared(x.Service) }) ||
		slices.ContainsFunc(r.Files, func(f fleet.File) bool { return c.under(f.Source) }) ||
		slices.ContainsFunc(r.Secrets, func(s fleet.Secret) bool { return c.under(s.Source) }) ||
		slices.ContainsFunc(r.Hardware, func(h *fleet.Hardware) bool {
			return image(h.Image) || h.Image == nil && image(f.Workspace.Image)
		}) ||
		slices.ContainsFunc(r.Tools, func(t fleet.Tool) bool {
			return given[t.Name] != "" || c.under(t.Path) ||
				t.Target != "" && len(c.files) > 0 || // only Bazel knows what it is made of
				strings.HasPrefix(t.Go, "./") && slices.ContainsFunc(c.files, c.goSource)
		})
}

// under reports whether name, or anything in it, is one of the files, or lies in
// one: a submodule, a link, or a folder that git does not keep.
func (c changes) under(name string) bool {
	name, _, _ = strings.Cut(name, "@sha256:") // an image may be given with its digest
	if name = path.Clean(name); name == "." {
		return false
	}
	is := func(file string) bool {
		file = strings.TrimSuffix(file, "/")
		return file == name || strings.HasPrefix(file, name+"/") || strings.HasPrefix(name, file+"/")
	}
	return slices.ContainsFunc(c.files, is) || slices.ContainsFunc(c.ignored, is)
}

// goSource reports whether a file may go into a program that Go builds.
func (c changes) goSource(file string) bool {
	if strings.HasSuffix(file, ".go") || slices.Contains([]string{"go.mod", "go.sum", "go.work"}, path.Base(file)) {
		return true
	}
	for dir := path.Dir(file); path.Base(dir) != ".."; dir = path.Dir(dir) {
		if c.code(dir) {
			return true
		}
		if dir == "." {
			break
		}
	}
	return false
}
