package builtins

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	"bj/fleet"
	"bj/lang"
	"bj/lang/diag"
)

// Options say how a workspace is loaded. The zero value is the default.
type Options struct {
	// Version is bj's own, such as "0.3.1"; one that is no release, such as
	// "" or "(devel)", meets every constraint.
	Version string
	// Stdlib is the library that files load as @bj//stdlib:x.star.
	Stdlib fs.FS
	// CacheDir is where facts of unchanged files are kept; empty means
	// nowhere, and so does NoCache.
	CacheDir string
	NoCache  bool
	// Print receives what files print. Nil discards it.
	Print  func(pos diag.Pos, text string)
	Limits lang.Limits
	Jobs   int // modules at once; GOMAXPROCS
	// Known reads the services of a graph that another repository saved, whose
	// path is absolute or relative to the workspace. With nil, none is known.
	Known func(file string) ([]*fleet.Service, error)
}

// A Result is all that a workspace declares, and all mistakes in it.
type Result struct {
	Fleet *fleet.Fleet
	// Diagnostics are all mistakes, as errors, wherever they are.
	Diagnostics diag.List

	tree       *lang.Tree
	found      []attributed
	candidates []candidate
}

// An attributed mistake counts against some modules, by file.
type attributed struct {
	d       diag.Diagnostic
	modules []string
}

// A candidate is a recipe that was declared, in order or not.
type candidate struct {
	label  lang.Label
	manual bool
	recipe *fleet.Recipe // nil if it has mistakes
	// needs are the modules whose mistakes are the recipe's too.
	needs []string
}

// Load reads every package of the workspace. People's mistakes are in the
// Result; the error is of the machine.
func Load(ctx context.Context, ws *lang.Workspace, opts Options) (*Result, error) {
	packages, settings := environments()
	lo := lang.Options{
		Predeclared: packages, Settings: settings, Stdlib: opts.Stdlib, Print: opts.Print,
		Limits: opts.Limits, Jobs: opts.Jobs,
		Begin: beginModule, End: endModule,
	}
	r := &Result{Fleet: &fleet.Fleet{}}
	if d := tooOld(ws, opts.Version); d != nil {
		r.add(*d, lang.SettingsFile)
		r.finish()
		return r, nil
	}
	if !opts.NoCache && opts.CacheDir != "" {
		lo.CacheDir, lo.CacheKey = opts.CacheDir, factsVersion+" "+opts.Version
		lo.Revive = reviveModule
	}
	st, err := lang.LoadSettings(ctx, ws, lo)
	if err != nil {
		return nil, fmt.Errorf("loading workspace: %w", err)
	}
	r.tree = st
	r.addModule(st.Settings)
	if s, ok := st.Settings.State.(*state); ok && s.settings != nil {
		r.Fleet.Workspace = *s.settings
	}
	t, err := lang.Load(ctx, ws, lo)
	if err != nil {
		return nil, fmt.Errorf("loading workspace: %w", err)
	}
	t.Settings = st.Settings
	r.tree = t
	l := &linker{r: r, services: make(map[string]*declaredService, len(t.Modules)), labels: make(map[string]*fleet.Recipe, len(t.Modules))}
	if opts.Known != nil {
		l.addKnown(opts.Known)
	}
	l.link()
	r.finish()
	return r, nil
}

// tooOld compares bj's version with the one that bj.star asks for, without
// evaluating it: it may use what this bj does not know.
func tooOld(ws *lang.Workspace, version string) *diag.Diagnostic {
	text, err := os.ReadFile(ws.Path(lang.SettingsFile))
	own := canonicalVersion(version)
	m := wantsVersion.FindSubmatchIndex(text)
	if err != nil || own == "" || m == nil {
		return nil
	}
	want := string(text[m[2]:m[3]])
	if ok, err := satisfies(own, want); ok || err != nil {
		return nil
	}
	src := lang.NewSource(lang.SettingsFile, text)
	line := 1 + strings.Count(string(text[:m[2]]), "\n")
	start := strings.LastIndexByte(string(text[:m[2]]), '\n') + 1
	return &diag.Diagnostic{
		Pos: diag.Pos{File: lang.SettingsFile, Line: line, Col: m[2] - start}, Severity: diag.Error, Rule: "version",
		Message: fmt.Sprintf("this workspace needs bj %s, and this is bj %s", want, strings.TrimPrefix(version, "v")),
		Hint:    "install a bj that meets it", Source: src.Line(line),
	}
}

// add records a mistake that counts against modules.
func (r *Result) add(d diag.Diagnostic, modules ...string) {
	r.found = append(r.found, attributed{d, modules})
}

// addModule records the mistakes of a module, with their places found.
func (r *Result) addModule(m *lang.Module) {
	for _, d := range m.Diags {
		if d.Source == "" && d.Pos.Line > 0 {
			d.Source = r.tree.Source(d.Pos.File).Line(d.Pos.Line)
		}
		r.add(d, m.File)
	}
	if s, ok := m.State.(*state); ok {
		for _, x := range s.mistakes {
			r.addMistake(x, m.File)
		}
	}
}

// addMistake finds the places of a mistake in the sources, and records it.
func (r *Result) addMistake(x mistake, modules ...string) {
	d := x.d
	d.Pos = r.tree.Source(x.at.pos.File).ArgPos(x.at.pos, x.arg)
	d.Source = r.tree.Source(d.Pos.File).Line(d.Pos.Line)
	d.Stack = nil
	for _, f := range x.at.stack {
		f.Pos = r.tree.Source(f.Pos.File).CallPos(f.Pos)
		d.Stack = append(d.Stack, f)
	}
	d.Related = slices.Clone(d.Related)
	for i := range d.Related {
		p := &d.Related[i].Pos
		*p = r.tree.Source(p.File).CallPos(*p)
	}
	r.add(d, modules...)
}

// finish sorts what was found.
func (r *Result) finish() {
	for _, a := range r.found {
		r.Diagnostics = append(r.Diagnostics, a.d)
	}
	r.Diagnostics = r.Diagnostics.Sort()
	slices.SortFunc(r.Fleet.Services, func(a, b *fleet.Service) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(r.Fleet.Recipes, func(a, b *fleet.Recipe) int { return strings.Compare(a.Label, b.Label) })
	slices.SortStableFunc(r.candidates, func(a, b candidate) int { return strings.Compare(a.label.String(), b.label.String()) })
}

// looksLikeService finds the names of services that a file which cannot be
// evaluated would have declared.
var looksLikeService = regexp.MustCompile(`\bservice\(\s*(?:name\s*=\s*)?"([^"\n]+)"`)
