package builtins

import (
	"fmt"
	"slices"

	"bj/fleet"
	"bj/lang"
	"bj/lang/diag"
)

// A NoMatchError says that a pattern selected nothing that may run.
type NoMatchError struct {
	Pattern string // as it was given; "" where all patterns together left nothing
	// Manual are the labels of recipes that the pattern names and their tag
	// keeps out of wildcards.
	Manual []string
	Hint   string

	pattern lang.Pattern
}

func (e *NoMatchError) Error() string {
	switch {
	case e.Pattern == "":
		return "the patterns leave no recipe"
	case len(e.Manual) > 0:
		return fmt.Sprintf("pattern %s names only manual recipes", e.Pattern)
	}
	return fmt.Sprintf("pattern %s matches no recipe", e.Pattern)
}

// Select returns the recipes that patterns name, sorted by label; wildcards
// leave out those tagged manual. cwd is the package that relative patterns
// start from. Mistakes in what the selected recipes are made of, load and allow
// are errors in the list, all others warnings. The error is a *lang.LabelError
// for a pattern that cannot be read, or a *NoMatchError.
func (r *Result) Select(patterns []string, cwd string) ([]*fleet.Recipe, diag.List, error) {
	return r.selectRecipes(patterns, cwd, false)
}

// SelectAll is Select with manual recipes like all others.
func (r *Result) SelectAll(patterns []string, cwd string) ([]*fleet.Recipe, diag.List, error) {
	return r.selectRecipes(patterns, cwd, true)
}

func (r *Result) selectRecipes(texts []string, cwd string, manual bool) ([]*fleet.Recipe, diag.List, error) {
	patterns := make([]lang.Pattern, len(texts))
	for i, text := range texts {
		p, err := lang.ParsePattern(text, cwd)
		if err != nil {
			return nil, nil, err
		}
		if p.Kind == lang.Bare {
			// //p is :p if there is one.
			last := lang.Label{Package: p.Package, Name: lastFolder(p.Package)}
			p.Kind = lang.All
			if slices.ContainsFunc(r.candidates, func(c candidate) bool { return c.label == last }) {
				p.Kind, p.Name = lang.One, last.Name
			}
		}
		patterns[i] = p
	}
	inside := map[string]bool{lang.SettingsFile: true}
	chosen := make(map[int]bool)
	var noMatch *NoMatchError
	for i, p := range patterns {
		matched, kept := 0, []string(nil)
		for j, c := range r.candidates {
			if !matches(p, c.label) {
				continue
			}
			switch {
			case p.Negative:
				delete(chosen, j)
			case c.manual && !manual && p.Kind != lang.One:
				kept = append(kept, c.label.String())
			default:
				matched++
				chosen[j] = true
			}
		}
		if !p.Negative && matched == 0 && noMatch == nil {
			noMatch = r.noMatch(texts[i], p, kept)
		}
	}
	// A file that cannot be evaluated belongs to whoever names its package.
	if r.tree != nil {
		for _, m := range r.tree.Modules {
			in := false
			for _, p := range patterns {
				if p.Covers(m.Package) && (p.Kind != lang.One || noMatch != nil && noMatch.pattern == p) {
					in = !p.Negative
				}
			}
			if !in {
				continue
			}
			for _, f := range r.tree.Closure(m.File) {
				inside[f] = true
			}
			if m.Broken && noMatch != nil && len(noMatch.Manual) == 0 && noMatch.pattern.Covers(m.Package) {
				noMatch = nil // its mistakes say why
			}
		}
	}
	var recipes []*fleet.Recipe
	for j, c := range r.candidates {
		if !chosen[j] {
			continue
		}
		for _, file := range c.needs {
			inside[file] = true
			for _, f := range r.tree.Closure(file) {
				inside[f] = true
			}
		}
		if c.recipe != nil {
			recipes = append(recipes, c.recipe)
		}
	}
	diags := r.judge(inside)
	if noMatch == nil && len(chosen) == 0 && !diags.HasErrors() {
		noMatch = &NoMatchError{}
	}
	if noMatch != nil {
		return nil, diags, noMatch
	}
	return recipes, diags, nil
}

func lastFolder(pkg string) string {
	for i := len(pkg) - 1; i >= 0; i-- {
		if pkg[i] == '/' {
			return pkg[i+1:]
		}
	}
	return pkg
}

func matches(p lang.Pattern, l lang.Label) bool {
	return p.Covers(l.Package) && (p.Kind != lang.One || p.Name == l.Name)
}

func (r *Result) noMatch(text string, p lang.Pattern, manual []string) *NoMatchError {
	e := &NoMatchError{Pattern: text, Manual: manual, pattern: p}
	if len(manual) > 0 {
		e.Hint = "name it in full to run it: " + manual[0]
		return e
	}
	var labels, packages []string
	for _, c := range r.candidates {
		labels = append(labels, c.label.String())
		packages = append(packages, "//"+c.label.Package)
	}
	switch {
	case len(labels) == 0:
		e.Hint = "this workspace has no recipes"
	case p.Kind == lang.One:
		e.Hint = lang.DidYouMean(p.String(), labels, r.elsewhere(labels, p.Name))
	default:
		e.Hint = lang.DidYouMean("//"+p.Package, packages, r.elsewhere(labels, lastFolder(p.Package)))
	}
	return e
}

// elsewhere is the hint for a name that is a recipe's of some package.
func (r *Result) elsewhere(labels []string, name string) string {
	if i := slices.IndexFunc(r.candidates, func(c candidate) bool { return c.label.Name == name }); i >= 0 {
		return "did you mean " + labels[i] + "?"
	}
	return "bj list //... names all recipes"
}

// judge returns all mistakes, with those outside as warnings.
func (r *Result) judge(inside map[string]bool) diag.List {
	var list diag.List
	for _, a := range r.found {
		d := a.d
		if !slices.ContainsFunc(a.modules, func(m string) bool { return inside[m] }) {
			d.Severity = diag.Warning
		}
		list = append(list, d)
	}
	// Of equal ones an error comes first, and stays.
	slices.SortStableFunc(list, func(a, b diag.Diagnostic) int {
		switch {
		case a.Severity == b.Severity:
			return 0
		case a.Severity == diag.Error:
			return -1
		}
		return 1
	})
	return list.Sort()
}
