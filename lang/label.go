package lang

import (
	"fmt"
	"path"
	"strings"

	"bj/lang/diag"
)

// A Label names one thing of one package: //package:name.
type Label struct {
	Repo    string // "bj" for the library inside the binary, else empty
	Package string // folder, relative to the workspace, "" for its root
	Name    string
}

// String prints the label in full; ParseLabel reads it back.
func (l Label) String() string {
	repo := ""
	if l.Repo != "" {
		repo = "@" + l.Repo
	}
	return repo + "//" + l.Package + ":" + l.Name
}

// A LabelError says why a label or pattern cannot be read.
type LabelError struct {
	Text, Message, Hint string
}

func (e *LabelError) Error() string { return fmt.Sprintf("malformed %s", e.Message) }

// Diagnostic returns the error at a place.
func (e *LabelError) Diagnostic(pos diag.Pos) diag.Diagnostic {
	return diag.Diagnostic{Pos: pos, Severity: diag.Error, Rule: "label", Message: e.Error(), Hint: e.Hint}
}

const labelHint = `labels are written like "//package/folder:name" or ":name"`

// ParseLabel reads //package:name, //package (the name is the last folder's),
// :name and folder:name relative to the package pkg, and @repo//package:name.
func ParseLabel(s, pkg string) (Label, error) {
	bad := func(hint string) error {
		return &LabelError{Text: s, Message: fmt.Sprintf("label %q", clip(s)), Hint: hint}
	}
	var l Label
	rest := s
	if strings.HasPrefix(rest, "@") {
		repo, after, ok := strings.Cut(rest[1:], "//")
		if !ok || !validSegment(repo) {
			return Label{}, bad(`a label of another repository is written like "@bj//stdlib:container.star"`)
		}
		l.Repo, rest, pkg = repo, "//"+after, ""
	}
	folder, name, hasName := strings.Cut(rest, ":")
	absolute := strings.HasPrefix(folder, "//")
	if absolute {
		l.Package = folder[2:]
	} else {
		if strings.HasPrefix(folder, "/") {
			return Label{}, bad("a label begins with two slashes")
		}
		l.Package = joinPackage(pkg, folder)
	}
	if !hasName {
		if !absolute {
			return Label{}, bad(labelHint)
		}
		name = path.Base(l.Package)
	}
	if !validPackage(l.Package) || strings.HasPrefix(folder, "./") || strings.HasSuffix(folder, "/") && folder != "//" {
		return Label{}, bad(labelHint)
	}
	if !validName(name) {
		return Label{}, bad(labelHint)
	}
	l.Name = name
	return l, nil
}

func clip(s string) string {
	if r := []rune(s); len(r) > 80 {
		return string(r[:77]) + "..."
	}
	return s
}

func joinPackage(pkg, folder string) string {
	if folder == "" {
		return pkg
	}
	if pkg == "" {
		return folder
	}
	return pkg + "/" + folder
}

func validPackage(p string) bool {
	if p == "" {
		return true
	}
	for seg := range strings.SplitSeq(p, "/") {
		if !validSegment(seg) {
			return false
		}
	}
	return true
}

// validSegment reports whether s can be the name of a folder of a package.
func validSegment(s string) bool {
	return s != "" && s != "." && s != ".." && s != "..." && validChars(s)
}

func validName(s string) bool {
	return s != "" && s != "." && s != ".." && s != "..." && validChars(s)
}

func validChars(s string) bool {
	for _, c := range s {
		if c <= ' ' || c == 0x7f || c == '\ufffd' || strings.ContainsRune(`:/\"'*?`, c) {
			return false
		}
	}
	return true
}

// A Pattern selects recipes: one (//p:name), all of a package (//p:all), all
// of a tree (//p/...), or what a bare package stands for (//p is :p if there
// is one, else :all). Negative ones subtract.
type Pattern struct {
	Negative bool
	Package  string
	Name     string // a recipe, or "" for the other kinds
	Kind     PatternKind
}

// PatternKind says how much a pattern selects.
type PatternKind int

const (
	One   PatternKind = iota // exactly Name
	All                      // every recipe of Package
	Below                    // every recipe of Package and of the packages below it
	Bare                     // the recipe named like the last folder of Package, else All
)

// String prints the pattern in full; ParsePattern reads it back.
func (p Pattern) String() string {
	sign := ""
	if p.Negative {
		sign = "-"
	}
	switch p.Kind {
	case All:
		return sign + "//" + p.Package + ":all"
	case Below:
		if p.Package == "" {
			return sign + "//..."
		}
		return sign + "//" + p.Package + "/..."
	case Bare:
		return sign + "//" + p.Package
	}
	return sign + Label{Package: p.Package, Name: p.Name}.String()
}

const patternHint = `patterns are written like //recipes/..., //recipes/zookeeper:all, //recipes/zookeeper:cold_start, and -//recipes/broken/... to subtract`

// ParsePattern reads a pattern. What does not begin with // is relative to the
// package cwd: ":name", "folder:name", "folder", "folder/...", "..." and ".".
func ParsePattern(s, cwd string) (Pattern, error) {
	bad := func() error {
		return &LabelError{Text: s, Message: fmt.Sprintf("pattern %q", clip(s)), Hint: patternHint}
	}
	var p Pattern
	rest := s
	if strings.HasPrefix(rest, "-") {
		p.Negative, rest = true, rest[1:]
	}
	if rest == "" {
		return Pattern{}, bad()
	}
	folder, name, hasName := strings.Cut(rest, ":")
	switch {
	case strings.HasPrefix(folder, "//"):
		p.Package = folder[2:]
		cwd = ""
	case strings.HasPrefix(folder, "/"):
		return Pattern{}, bad()
	default:
		// A shell completes folders with ./ before and / after.
		folder = strings.TrimPrefix(folder, "./")
		if folder == "." {
			folder = ""
		}
		if folder != "/" && strings.HasSuffix(folder, "/") {
			folder = folder[:len(folder)-1]
		}
		for folder == ".." || strings.HasPrefix(folder, "../") {
			if cwd == "" {
				return Pattern{}, bad()
			}
			cwd = path.Dir(cwd)
			if cwd == "." {
				cwd = ""
			}
			folder = strings.TrimPrefix(strings.TrimPrefix(folder, ".."), "/")
		}
		p.Package = joinPackage(cwd, folder)
	}
	if p.Package == "..." || strings.HasSuffix(p.Package, "/...") {
		if hasName && name != "all" {
			return Pattern{}, bad()
		}
		p.Kind, p.Package = Below, strings.TrimSuffix(strings.TrimSuffix(p.Package, "..."), "/")
		if !validPackage(p.Package) {
			return Pattern{}, bad()
		}
		return p, nil
	}
	if !validPackage(p.Package) {
		return Pattern{}, bad()
	}
	switch {
	case !hasName && p.Package == "":
		p.Kind = All
	case !hasName:
		p.Kind = Bare
	case name == "all":
		p.Kind = All
	case validName(name):
		p.Kind, p.Name = One, name
	default:
		return Pattern{}, bad()
	}
	return p, nil
}

// Covers reports whether the pattern reaches into the package pkg.
func (p Pattern) Covers(pkg string) bool {
	if p.Package == pkg {
		return true
	}
	return p.Kind == Below && (p.Package == "" || strings.HasPrefix(pkg, p.Package+"/"))
}
