package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/bazelbuild/buildtools/build"
	"golang.org/x/mod/modfile"
)

// goPackage is a package, as go list says it.
type goPackage struct {
	ImportPath, Dir, Name                                  string
	GoFiles, SFiles, IgnoredGoFiles, Imports, EmbedFiles   []string
	TestGoFiles, XTestGoFiles, IgnoredOtherFiles, CgoFiles []string
}

// TestBuildFiles compares the BUILD.bazel of every Go package with what Go says
// of it, in the form that gazelle gives them; -update writes them. Tests have no
// targets: they need root, and files of the whole tree. MODULE.bazel names the
// repositories of all that go.mod requires directly, and no other.
func TestBuildFiles(t *testing.T) {
	root := filepath.Join("..", "..")
	data, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	mod, err := modfile.Parse("go.mod", data, nil)
	if err != nil {
		t.Fatal(err)
	}
	own := mod.Module.Mod.Path
	cmd := exec.Command("go", "list", "-json", "./...")
	cmd.Dir, cmd.Stderr = root, t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	label := func(imported string) string {
		if rest, ok := strings.CutPrefix(imported, own+"/"); ok {
			return "//" + rest
		}
		module := ""
		for _, r := range mod.Require {
			if m := r.Mod.Path; (imported == m || strings.HasPrefix(imported, m+"/")) && len(m) > len(module) {
				module = m
			}
		}
		repo := bazelRepo(module)
		used[repo] = true
		pkg := strings.TrimPrefix(strings.TrimPrefix(imported, module), "/")
		name := path.Base(imported)
		if regexp.MustCompile(`^v[0-9]+$`).MatchString(name) {
			name = path.Base(path.Dir(imported))
		}
		return "@" + repo + "//" + pkg + ":" + name
	}
	n := 0
	for d := json.NewDecoder(bytes.NewReader(out)); ; n++ {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles) == 0 || strings.HasPrefix(p.ImportPath, own+"/recipes/") { // the fleet's own are built by bj
			continue
		}
		golden(t, filepath.Join(p.Dir, "BUILD.bazel"), buildFile(t, &p, label))
	}
	if n < 20 {
		t.Errorf("go list knows %d packages", n)
	}

	text, err := os.ReadFile(filepath.Join(root, "MODULE.bazel"))
	if err != nil {
		t.Fatal(err)
	}
	module, err := build.ParseModule("MODULE.bazel", text)
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, r := range module.Rules("use_repo") {
		if ext, ok := r.Call.List[0].(*build.Ident); !ok || ext.Name != "go_deps" {
			continue
		}
		for _, x := range r.Call.List[1:] {
			named[x.(*build.StringExpr).Value] = true
		}
	}
	direct := map[string]bool{}
	for _, r := range mod.Require {
		direct[bazelRepo(r.Mod.Path)] = !r.Indirect
		if repo := bazelRepo(r.Mod.Path); named[repo] == r.Indirect {
			t.Errorf("go.mod requires %s, indirectly: %v, and MODULE.bazel has use_repo %q: %v", r.Mod.Path, r.Indirect, repo, named[repo])
		}
		delete(named, bazelRepo(r.Mod.Path))
	}
	for repo := range named {
		t.Errorf("MODULE.bazel has use_repo %q, which go.mod does not require", repo)
	}
	for repo := range used {
		if !direct[repo] {
			t.Errorf("a target needs %q, which go.mod does not require directly", repo)
		}
	}
}

// bazelRepo is the name that gazelle gives to the repository of a module.
func bazelRepo(module string) string {
	host, rest, _ := strings.Cut(strings.ToLower(module), "/")
	parts := strings.Split(host, ".")
	slices.Reverse(parts)
	if rest != "" {
		parts = append(parts, rest)
	}
	return regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.Join(parts, "_"), "_")
}

// buildFile is the BUILD.bazel of a package.
func buildFile(t *testing.T, p *goPackage, label func(imported string) string) []byte {
	t.Helper()
	if len(p.CgoFiles) > 0 {
		t.Errorf("%s uses cgo, and bj is pure Go", p.ImportPath)
	}
	list := func(names []string) string {
		var b strings.Builder
		for _, n := range names {
			fmt.Fprintf(&b, "%q,", n)
		}
		return "[" + b.String() + "]"
	}
	// Those of other platforms, too, of which rules_go takes its own.
	srcs := slices.DeleteFunc(slices.Concat(p.GoFiles, p.SFiles, p.IgnoredGoFiles, p.IgnoredOtherFiles), func(name string) bool {
		return strings.HasSuffix(name, "_test.go") || !strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, ".s")
	})
	slices.Sort(srcs)
	var deps []string
	for _, i := range p.Imports {
		if first, _, _ := strings.Cut(i, "/"); strings.Contains(first, ".") || first == strings.Split(p.ImportPath, "/")[0] {
			deps = append(deps, label(i))
		}
	}
	name, visibility, loads := path.Base(p.ImportPath), "//visibility:public", `"go_library"`
	lib := name
	if p.Name == "main" {
		lib, visibility, loads = name+"_lib", "//visibility:private", `"go_binary", "go_library"`
	}
	var b strings.Builder
	if p.Name == "main" {
		b.WriteString("load(\"//:defs.bzl\", \"bj_toolchain\")\n")
	}
	fmt.Fprintf(&b, "load(\"@io_bazel_rules_go//go:def.bzl\", %s)\n\ngo_library(name = %q, srcs = %s,", loads, lib, list(srcs))
	if len(p.EmbedFiles) > 0 {
		fmt.Fprintf(&b, "embedsrcs = %s,", list(p.EmbedFiles))
	}
	fmt.Fprintf(&b, "importpath = %q, visibility = [%q],", p.ImportPath, visibility)
	if len(deps) > 0 {
		fmt.Fprintf(&b, "deps = %s,", list(deps))
	}
	b.WriteString(")\n")
	if p.Name == "main" {
		fmt.Fprintf(&b, `go_binary(name = %q, embed = [%q], pure = "on", static = "on", visibility = ["//visibility:public"])
bj_toolchain(name = "bj_toolchain", bj = %q)

# For register_toolchains: bj as this revision has it, built by rules_go.
toolchain(name = "toolchain", exec_compatible_with = ["@platforms//os:linux"], target_compatible_with = ["@platforms//os:linux"],
    toolchain = ":bj_toolchain", toolchain_type = "//:toolchain_type")
`, name, ":"+lib, ":"+name)
	}
	f, err := build.ParseBuild(filepath.Join(p.Dir, "BUILD.bazel"), []byte(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	return build.Format(f)
}
