package builtins

import (
	"fmt"
	"os"
	"path"
	"slices"

	"bj/fleet"
	"bj/lang"
	"bj/lang/diag"
)

// A linker joins what the modules declare into one fleet: names that a module
// leaves open are resolved here, in the order of files, so that the same files
// give the same fleet and the same mistakes.
type linker struct {
	r        *Result
	services map[string]*declaredService
	labels   map[string]*fleet.Recipe
	files    map[string]string // module of a recipe's label
	names    []string          // of all services, for suggestions
}

// A declaredService is a service and the module that declares it. One that was
// declared with mistakes, or by a module that is broken, has no service.
type declaredService struct {
	s      *fleet.Service
	module string
}

func (l *linker) link() {
	t := l.r.tree
	type declared struct {
		m        *lang.Module
		services []*fleet.Service
		recipes  []*fleet.Recipe
		broken   []*fleet.Recipe
	}
	all := make([]declared, 0, len(t.Modules))
	for _, m := range t.Modules {
		l.r.addModule(m)
		f := factsOf(m)
		for _, s := range f.services {
			l.addService(m, s)
		}
		for _, name := range f.phantoms {
			if l.services[name] == nil {
				l.services[name] = &declaredService{module: m.File}
			}
		}
		all = append(all, declared{m, f.services, f.recipes, f.broken})
	}
	for _, m := range t.Modules {
		if m.Broken {
			for _, match := range looksLikeService.FindAllSubmatch(t.Text(m.File), -1) {
				if name := string(match[1]); l.services[name] == nil {
					l.services[name] = &declaredService{module: m.File}
				}
			}
		}
	}
	for name, d := range l.services {
		l.names = append(l.names, name)
		if d.s != nil && d.s.Known != "" {
			l.r.Fleet.Services = append(l.r.Fleet.Services, d.s)
		}
	}
	for _, d := range all {
		modules := t.Closure(d.m.File)
		for _, s := range d.services {
			s.Modules = modules
		}
		for _, rec := range d.recipes {
			rec.FileDoc, rec.Modules = d.m.Doc, modules
			l.addRecipe(d.m, rec, true)
		}
		for _, rec := range d.broken {
			rec.Modules = modules
			l.addRecipe(d.m, rec, false)
		}
	}
}

// addKnown makes the services of graphs that other repositories saved known. A
// service that the workspace declares, too, is the workspace's.
func (l *linker) addKnown(read func(string) ([]*fleet.Service, error)) {
	w := &l.r.Fleet.Workspace
	for _, file := range w.Known {
		services, err := read(file)
		if err != nil {
			l.r.add(diag.Diagnostic{Pos: w.Pos, Severity: diag.Error, Rule: "known", Message: err.Error(),
				Hint: "save one there with bj graph --format json"}, lang.SettingsFile)
			continue
		}
		for _, s := range services {
			if l.services[s.Name] == nil {
				l.services[s.Name] = &declaredService{s, lang.SettingsFile}
			}
		}
	}
}

func (l *linker) addService(m *lang.Module, s *fleet.Service) {
	s.FileDoc = m.Doc
	if first := l.services[s.Name]; first != nil && first.s != nil && first.s.Known == "" {
		l.duplicate(fmt.Sprintf("service %q is declared twice", s.Name), "service", declaration(s.Pos, s.Stack, "service"), m.File,
			declaration(first.s.Pos, first.s.Stack, "service"), first.module)
		return
	}
	l.services[s.Name] = &declaredService{s, m.File}
	l.r.Fleet.Services = append(l.r.Fleet.Services, s)
}

// declaration returns where a declaration was called, for the search of its
// arguments.
func declaration(pos diag.Pos, stack []diag.Frame, builtin string) at {
	if n := len(stack); n > 0 {
		outer := append([]diag.Frame{{Pos: pos, Func: "the top level"}}, stack[:n-1]...)
		return at{parenthesis(stack[n-1].Pos, builtin), outer}
	}
	return at{pos: parenthesis(pos, builtin)}
}

// parenthesis is the place of a call's parenthesis, from that of its start.
func parenthesis(pos diag.Pos, builtin string) diag.Pos {
	pos.Col += len(builtin)
	return pos
}

func (l *linker) duplicate(message, kind string, second at, module string, first at, firstModule string) {
	l.r.addMistake(mistake{at: second, arg: lang.Arg{Name: "name"}, d: diag.Diagnostic{
		Severity: diag.Error, Rule: "duplicate", Message: message,
		Related: []diag.Related{{Pos: first.pos, Message: "the first one"}},
	}}, module, firstModule)
}

// addRecipe resolves what a recipe names, and adds it to the fleet if all of it
// is there and it was good so far.
func (l *linker) addRecipe(m *lang.Module, rec *fleet.Recipe, good bool) {
	place := declaration(rec.Pos, rec.Stack, "recipe")
	label := lang.Label{Package: rec.Package, Name: rec.Name}
	c := candidate{label: label, manual: rec.Manual(), needs: rec.Modules}
	defer func() { l.r.candidates = append(l.r.candidates, c) }()
	if first := l.labels[rec.Label]; first != nil && rec.Name != "" {
		l.duplicate(fmt.Sprintf("recipe %q is declared twice in its package", rec.Name), "recipe", place, m.File,
			declaration(first.Pos, first.Stack, "recipe"), l.files[rec.Label])
		return
	}
	if l.files == nil {
		l.files = make(map[string]string)
	}
	l.labels[rec.Label], l.files[rec.Label] = rec, m.File
	need := func(d *declaredService) {
		if d.module != m.File {
			c.needs = append(slices.Clip(c.needs), d.module)
		}
	}
	if rec.Service != "" {
		if d := l.resolve(rec.Service, place, lang.Arg{Name: "service", Index: 1}, m); d == nil {
			good = false
		} else {
			need(d)
			good = d.s != nil && l.resolveRestores(rec, d.s, place, m) && good
		}
	}
	conditions := make([]*fleet.Condition, 0, len(rec.Conditions)+len(rec.Tools))
	for i := range rec.Conditions {
		conditions = append(conditions, &rec.Conditions[i])
	}
	for i := range rec.Tools {
		if k := rec.Tools[i].Kept; k != nil && k.Allow != nil {
			conditions = append(conditions, k.Allow)
		}
	}
	for _, cond := range conditions {
		if cond.Service == "" || cond.Service == "*" {
			continue
		}
		at := at{parenthesis(cond.Pos, "allow"), cond.Stack}
		d := l.resolve(cond.Service, at, lang.Arg{Name: "what"}, m)
		if d == nil {
			good = false
			continue
		}
		need(d)
		if d.s == nil || !l.resolvePathways(cond, d.s, at, m) {
			good = false
		}
	}
	if !l.checkSources(rec, m) {
		good = false
	}
	if good {
		c.recipe = rec
		l.r.Fleet.Recipes = append(l.r.Fleet.Recipes, rec)
	}
}

// resolve finds a service, or reports that there is none.
func (l *linker) resolve(name string, place at, arg lang.Arg, m *lang.Module) *declaredService {
	if d := l.services[name]; d != nil {
		return d
	}
	l.mistake(place, arg, m, "unknown-service", lang.DidYouMean(name, l.names, fmt.Sprintf("declare it: service(name = %q, owner = ...)", name)), "unknown service %q", name)
	return nil
}

func (l *linker) mistake(place at, arg lang.Arg, m *lang.Module, rule, hint, format string, args ...any) {
	l.r.addMistake(mistake{at: place, arg: arg, d: diag.Diagnostic{Severity: diag.Error, Rule: rule, Hint: hint, Message: fmt.Sprintf(format, args...)}}, m.File)
}

func pathwayNames(s *fleet.Service) []string {
	names := make([]string, len(s.Pathways))
	for i := range s.Pathways {
		names[i] = s.Pathways[i].Name
	}
	return names
}

func (l *linker) resolveRestores(rec *fleet.Recipe, s *fleet.Service, place at, m *lang.Module) bool {
	if len(rec.Restores) == 0 {
		rec.Restores = pathwayNames(s)
		return true
	}
	good := true
	for i, p := range rec.Restores {
		if s.Pathway(p) == nil {
			good = false
			l.mistake(place, lang.Arg{Name: "restores", Index: -1, Path: []any{i}}, m, "unknown-pathway", l.pathwayHint(p, s), "service %q has no pathway %q", s.Name, p)
		}
	}
	return good
}

func (l *linker) pathwayHint(p string, s *fleet.Service) string {
	names := pathwayNames(s)
	return lang.DidYouMean(p, names, "it has "+quoted(names))
}

func quoted(names []string) string {
	q := make([]string, len(names))
	for i, n := range names {
		q[i] = fmt.Sprintf("%q", n)
	}
	return orList(q)
}

func (l *linker) resolvePathways(cond *fleet.Condition, s *fleet.Service, place at, m *lang.Module) bool {
	switch {
	case len(cond.Pathways) == 1 && cond.Pathways[0] == "*":
		cond.Pathways = pathwayNames(s)
		return true
	case len(cond.Pathways) == 0 && len(s.Pathways) == 1:
		cond.Pathways = pathwayNames(s)
		return true
	case len(cond.Pathways) == 0:
		names := pathwayNames(s)
		l.mistake(place, lang.Arg{Name: "what"}, m, "pathway", fmt.Sprintf(`write allow(%q, %q), or "*" for all`, s.Name, names[0]),
			"service %q has several pathways: name those that are needed: %s", s.Name, quoted(names))
		return false
	}
	good := true
	for i, p := range cond.Pathways {
		if s.Pathway(p) == nil {
			good = false
			l.mistake(place, lang.Arg{Index: i + 1}, m, "unknown-pathway", l.pathwayHint(p, s), "service %q has no pathway %q", s.Name, p)
		}
	}
	return good
}

// checkSources checks that the files that a recipe names are there. The value
// of a secret is a file's if it names one of the package.
func (l *linker) checkSources(rec *fleet.Recipe, m *lang.Module) bool {
	good := true
	there := func(file string) bool {
		if !path.IsAbs(file) {
			file = l.r.tree.Workspace.Path(file)
		}
		info, err := os.Stat(file)
		return err == nil && info.Mode().IsRegular()
	}
	for i := range rec.Files {
		f := &rec.Files[i]
		if f.Source != "" && !there(f.Source) {
			good = false
			l.mistake(at{pos: parenthesis(f.Pos, "file")}, lang.Arg{Name: "source", Index: 2}, m, "file", "sources are relative to the package", "no such file: %s", f.Source)
		}
	}
	for i := range rec.Secrets {
		s := &rec.Secrets[i]
		if s.Source == "" && plainFileName(s.Value) && there(path.Join(rec.Package, s.Value)) {
			s.Source, s.Value = path.Join(rec.Package, s.Value), ""
		} else if s.Source != "" && !there(s.Source) {
			good = false
			l.mistake(at{pos: parenthesis(s.Pos, "secret")}, lang.Arg{Name: "test", Index: 1}, m, "file", "", "no such file: %s", s.Source)
		}
	}
	return good
}

// plainFileName reports whether a secret's value could be the name of a file.
func plainFileName(s string) bool {
	return s != "" && len(s) < 128 && s != "." && s != ".." && fleet.CheckName("file", s) == nil
}
