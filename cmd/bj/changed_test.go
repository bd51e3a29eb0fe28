package main

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bj/fleet"
)

func TestAffected(t *testing.T) {
	f := &fleet.Fleet{
		Services: []*fleet.Service{
			{Name: "names", Modules: []string{"names/names.star", "names/zone.star"}},
			{Name: "web", Modules: []string{"web/service.star"}},
		},
		Recipes: []*fleet.Recipe{
			{Label: "//names:n", Service: "names", Modules: []string{"names/names.star", "lib/ports.star"}},
			{Label: "//own:o", Service: "own", Modules: []string{"own/own.star"}, Tools: []fleet.Tool{{Go: "./cmd/own"}, {Name: "own", Path: "tools/own"}},
				Files: []fleet.File{{Source: "own/data"}}, Secrets: []fleet.Secret{{Source: "own/secret"}},
				Hardware: []*fleet.Hardware{{Image: &fleet.Image{OCI: "images/own"}}, {}}},
			{Label: "//target:t", Service: "target", Modules: []string{"target/t.star"}, Tools: []fleet.Tool{{Target: "//src:t"}}},
			{Label: "//web:w", Service: "web", Modules: []string{"web/web.star"}, Conditions: []fleet.Condition{{Service: "names"}, {Service: "*"}}},
		},
	}
	for _, c := range []struct{ files, ignored, supply, want string }{
		{"", "", "", ""},
		{"", "tools/ build/", "", "//own:o"}, // nobody knows whether what was built differs
		{"", "build/x.go", "", ""},
		{"README.md", "", "", "//target:t"}, // what Bazel makes, it may make of anything
		{"lib/ports.star", "", "production", "//names:n //target:t"},
		{"lib/ports.star", "", "recipes", "//names:n //target:t //web:w"}, // web stands on what names' recipe brings back
		{"names/names.star", "", "", "//names:n //target:t //web:w"},
		{"names/zone.star", "", "", "//names:n //target:t //web:w"}, // of which the service is made
		{"web/service.star", "", "", "//target:t //web:w"},
		{"web/web.star own/own.star", "", "", "//own:o //target:t //web:w"},
		{"own/data/a/b", "", "", "//own:o //target:t"},
		{"own/data2", "", "", "//target:t"},
		{"own", "", "", "//own:o //target:t"}, // a link, or a submodule
		{"own/secret", "", "", "//own:o //target:t"},
		{"tools/own", "", "", "//own:o //target:t"},
		{"images/own/index.json", "", "", "//own:o //target:t"},
		{"internal/x.go", "", "", "//own:o //target:t"},
		{"../lib/x.go", "", "", "//own:o //target:t"}, // the workspace is part of a Go module
		{"go.sum", "", "", "//own:o //target:t"},
		{"embeds/pages/x.html", "", "", "//own:o //target:t"},
		{"../embeds/x.html", "", "", "//own:o //target:t"},
		{"bj.star", "", "", "//names:n //own:o //target:t //web:w"},
		{"sub/bj.star", "", "", "//target:t"},
	} {
		change := changes{files: strings.Fields(c.files), ignored: strings.Fields(c.ignored), code: func(dir string) bool { return path.Base(dir) == "embeds" }}
		var got []string
		for _, r := range affected(f, f.Recipes, change, c.supply, nil) {
			got = append(got, r.Label)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("a change of %q affects %q, want %q", c.files, s, c.want)
		}
	}
	got := affected(f, f.Recipes, changes{}, "", map[string]string{"own": "build/own"})
	if len(got) != 1 || got[0].Label != "//own:o" {
		t.Errorf("another program for a tool affects %v", got)
	}
}

// TestChangedSince asks a real git, in a workspace that is a folder of a
// repository.
func TestChangedSince(t *testing.T) {
	repo := t.TempDir()
	root := filepath.Join(repo, "infra")
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", repo, "-c", "user.name=t", "-c", "user.email=t@example.com"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(repo, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	git("init", "-q", "-b", "main")
	for _, name := range []string{"infra/bj.star", "infra/kept", "infra/moved", "infra/gone", "infra/edited", "lib/x.go", "infra/name with\n\"ü"} {
		write(name, name)
	}
	write(".gitignore", "build/\n")
	git("add", ".")
	git("commit", "-q", "-m", "one")
	git("checkout", "-q", "-b", "topic")
	git("mv", "infra/moved", "infra/arrived")
	git("rm", "-q", "infra/gone")
	git("commit", "-q", "-m", "two")
	git("checkout", "-q", "main")
	write("infra/kept", "changed on main, after the branch had left")
	git("commit", "-q", "-a", "-m", "three")
	git("checkout", "-q", "topic")
	write("infra/edited", "not committed")
	write("infra/new", "not added")
	write("infra/name with\n\"ü", "changed")
	write("lib/x.go", "outside of the workspace")
	write("infra/build/tool", "ignored")

	c, err := changedSince(t.Context(), root, "main")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"../lib/x.go", "arrived", "edited", "gone", "moved", "name with\n\"ü", "new"}
	if !slices.Equal(c.files, want) || !slices.Equal(c.ignored, []string{"build"}) {
		t.Errorf("changed %q, ignored %q; want %q", c.files, c.ignored, want)
	}
	if !c.code("../lib") || c.code(".") {
		t.Error("Go files are in lib, and only there")
	}
	for _, rev := range []string{"nowhere", "--output=x", "", "HEAD:infra", "main..topic"} {
		if _, err := changedSince(t.Context(), root, rev); exitCode(err) != exitUsage {
			t.Errorf("revision %q: %v", rev, err)
		}
	}
	// A folder that is no repository.
	if _, err := changedSince(t.Context(), t.TempDir(), "main"); exitCode(err) != exitUsage || !strings.Contains(err.Error(), "not a git repository") {
		t.Errorf("outside of a repository: %v", err)
	}
}
