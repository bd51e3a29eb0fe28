package lang

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"go.starlark.net/starlark"

	"bj/lang/diag"
)

// Options say what the files of a workspace see, and who listens. Begin and
// End are called from several goroutines at once, for different modules.
type Options struct {
	// Predeclared are the builtins of package files and of the library,
	// Settings those of bj.star. All of them must be frozen or immutable.
	Predeclared, Settings starlark.StringDict
	// Stdlib is the library that files load as @bj//stdlib:x.star.
	Stdlib fs.FS
	// Begin is called before the first step of a module, with the modules that
	// it loads; what it returns is its State, which builtins find with StateOf.
	Begin func(m *Module, loads []*Module) any
	// End is called after the last step of a module that no mistake cut off; it
	// returns the facts that the cache keeps, or "" to keep none.
	End func(*Module) string
	// Revive reads the facts that the cache kept of a module, which become its
	// State, and reports whether it could.
	Revive func(file, facts string) (state any, ok bool)
	// Print receives what files print. Nil discards it.
	Print func(pos diag.Pos, text string)

	Limits Limits
	Jobs   int // modules at once; GOMAXPROCS

	// CacheDir is a folder for the facts of unchanged files; empty means none.
	CacheDir string
	// CacheKey names everything besides the files that facts depend on, such
	// as the version of bj and of their encoding.
	CacheKey string
}

// A Tree is all modules of a workspace.
type Tree struct {
	Workspace *Workspace
	Settings  *Module   // bj.star
	Modules   []*Module // the others, by file
	byFile    map[string]*Module
	stdlib    fs.FS

	mu      sync.Mutex
	sources map[string]*Source
}

// Module returns the module of a file, or nil.
func (t *Tree) Module(file string) *Module {
	if file == SettingsFile {
		return t.Settings
	}
	return t.byFile[file]
}

// Source returns the text of a file of the tree; it is read again if it was
// not evaluated, and empty if it cannot be.
func (t *Tree) Source(file string) *Source {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sources[file]
	if s == nil {
		s = NewSource(file, t.Text(file))
		t.sources[file] = s
	}
	return s
}

// Text returns the bytes of a file of the tree, or nothing if it cannot be read.
func (t *Tree) Text(file string) []byte {
	if m := t.Module(file); m != nil && m.src != nil {
		return m.src
	}
	text, _ := t.read(file)
	return text
}

const stdlibPrefix = "@bj//stdlib/"

func (t *Tree) read(file string) ([]byte, error) {
	if name, ok := strings.CutPrefix(file, stdlibPrefix); ok {
		if t.stdlib == nil {
			return nil, fs.ErrNotExist
		}
		return fs.ReadFile(t.stdlib, name)
	}
	return os.ReadFile(t.Workspace.Path(file))
}

// Closure returns the files of a module and of all that it loads, sorted.
func (t *Tree) Closure(file string) []string {
	seen := map[string]bool{}
	var visit func(string)
	visit = func(f string) {
		if seen[f] {
			return
		}
		seen[f] = true
		if m := t.byFile[f]; m != nil {
			for _, l := range m.Loads {
				visit(l.File)
			}
		}
	}
	visit(file)
	files := make([]string, 0, len(seen))
	for f := range seen {
		files = append(files, f)
	}
	slices.Sort(files)
	return files
}

// Load reads, compiles and evaluates every module of the workspace, and the
// settings file before them. People's mistakes are in the modules' Diags; the
// error is of the machine.
func Load(ctx context.Context, ws *Workspace, opts Options) (*Tree, error) {
	if opts.Jobs <= 0 {
		opts.Jobs = runtime.GOMAXPROCS(0)
	}
	// The cache is read while the folders are listed.
	caches := make(chan *cache, 1)
	go func() {
		if opts.CacheDir == "" {
			caches <- nil
			return
		}
		caches <- openCache(opts.CacheDir, opts.CacheKey, ws)
	}()
	files, err := ws.Files()
	known := <-caches
	if err != nil {
		return nil, err
	}
	t := &Tree{Workspace: ws, stdlib: opts.Stdlib, byFile: make(map[string]*Module, len(files)), sources: make(map[string]*Source)}
	t.Modules = make([]*Module, len(files))
	for i, f := range files {
		t.Modules[i] = &Module{File: f, Package: packageOfFile(f)}
		t.byFile[f] = t.Modules[i]
	}
	l := &loader{
		tree: t, opts: opts,
		env:      bounded(opts.Predeclared),
		settings: bounded(opts.Settings),
		guard:    newGuard(opts.Limits),
		cache:    known,
	}
	defer l.guard.close()
	if err := l.loadAll(ctx); err != nil {
		return nil, err
	}
	slices.SortFunc(t.Modules, func(a, b *Module) int { return strings.Compare(a.File, b.File) })
	return t, nil
}

// LoadSettings evaluates the settings file alone.
func LoadSettings(ctx context.Context, ws *Workspace, opts Options) (*Tree, error) {
	t := &Tree{Workspace: ws, stdlib: opts.Stdlib, byFile: map[string]*Module{}, sources: make(map[string]*Source)}
	l := &loader{tree: t, opts: opts, settings: bounded(opts.Settings), guard: newGuard(opts.Limits)}
	defer l.guard.close()
	m := &Module{File: SettingsFile}
	t.Settings = m
	if err := l.readAndCompile(m, l.settings); err != nil {
		return nil, err
	}
	if !m.Broken {
		l.evaluate(m, l.settings)
	}
	return t, ctx.Err()
}

// A loader carries one Load.
type loader struct {
	tree          *Tree
	opts          Options
	env, settings starlark.StringDict
	guard         *guard
	cache         *cache // or nil
}

func (l *loader) loadAll(ctx context.Context) error {
	t := l.tree
	stale := t.Modules
	if l.cache != nil {
		if err := l.forEach(ctx, t.Modules, l.revive); err != nil {
			return err
		}
		if err := l.addLibrary(ctx, l.revive); err != nil {
			return err
		}
		stale = l.refresh()
		for _, m := range stale {
			if m.cached {
				m.cached, m.Loads, m.Facts, m.State = false, nil, "", nil
			}
		}
	}
	compile := func(m *Module) error { return l.readAndCompile(m, l.env) }
	if err := l.forEach(ctx, stale, compile); err != nil {
		return err
	}
	if err := l.addLibrary(ctx, compile); err != nil {
		return err
	}
	l.findCycles()
	if err := l.evaluateAll(ctx); err != nil {
		return err
	}
	if l.cache != nil {
		l.keep()
	}
	for _, m := range t.Modules {
		m.globals = nil
		if len(m.Diags) == 0 {
			m.src = nil
		}
	}
	return nil
}

// forEach calls f for every module, several at once, until one fails.
func (l *loader) forEach(ctx context.Context, modules []*Module, f func(*Module) error) error {
	var next atomic.Int64
	errs := make([]error, l.opts.Jobs)
	var wg sync.WaitGroup
	for w := range l.opts.Jobs {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(modules) {
					return
				}
				if errs[w] = f(modules[i]); errs[w] != nil {
					next.Store(int64(len(modules)))
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}

func (l *loader) readAndCompile(m *Module, env starlark.StringDict) error {
	if m.prog != nil || m.Broken {
		return nil // was compiled while the library was gathered
	}
	if m.src == nil {
		src, err := l.tree.read(m.File)
		if err != nil {
			m.fail(diag.Diagnostic{Pos: diag.Pos{File: m.File, Line: 1, Col: 1}, Rule: "file", Message: "file cannot be read: " + plainError(err)})
			return nil
		}
		m.src = src
	}
	m.src = bytes.TrimPrefix(m.src, []byte("\ufeff"))
	m.compile(env, l.resolveLoad)
	return nil
}

// plainError leaves out the operation and path of a file error.
func plainError(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// A hintedError is a mistake with the way to mend it.
type hintedError struct{ message, hint string }

func (e *hintedError) Error() string { return e.message }

// resolveLoad returns the file that a load statement of m names.
func (l *loader) resolveLoad(m *Module, label string) (string, error) {
	if m.File == SettingsFile {
		return "", &hintedError{"bj.star loads nothing", "settings stand alone; move what is shared to package files"}
	}
	pkg, inLibrary := m.Package, strings.HasPrefix(m.File, stdlibPrefix)
	lab, err := ParseLabel(label, strings.TrimPrefix(pkg, "@bj//"))
	if err != nil {
		return "", err
	}
	if !strings.HasSuffix(lab.Name, ".star") {
		return "", &hintedError{fmt.Sprintf("load of %q: a module's name ends in .star", label), `load files like "//lib:ports.star" or ":near.star"`}
	}
	if inLibrary && lab.Repo == "" {
		lab.Repo = "bj"
	}
	switch lab.Repo {
	case "":
		file := path.Join(lab.Package, lab.Name)
		if l.tree.byFile[file] != nil {
			return file, nil
		}
		return "", l.missing(label, lab, file)
	case "bj":
		name, ok := strings.CutPrefix(path.Join(lab.Package, lab.Name), "stdlib/")
		if ok && l.opts.Stdlib != nil {
			if info, err := fs.Stat(l.opts.Stdlib, name); err == nil && !info.IsDir() {
				return stdlibPrefix + name, nil
			}
		}
		hint := `the library's files are loaded like "@bj//stdlib:container.star"`
		if names := l.libraryFiles(); len(names) > 0 {
			hint = DidYouMean(strings.TrimPrefix(name, "stdlib/"), names, "the library has "+strings.Join(names, ", "))
		}
		return "", &hintedError{fmt.Sprintf("load of %q: the library has no such file", label), hint}
	}
	return "", &hintedError{fmt.Sprintf("load of %q: unknown repository @%s", label, lab.Repo), "@bj is the library inside bj, and the only other repository"}
}

func (l *loader) libraryFiles() []string {
	if l.opts.Stdlib == nil {
		return nil
	}
	names, _ := fs.Glob(l.opts.Stdlib, "*.star")
	return names
}

func (l *loader) missing(label string, lab Label, file string) error {
	message := fmt.Sprintf("load of %q: no such file", label)
	switch {
	case lab.Name == SettingsFile || strings.HasSuffix(lab.Name, "_test.star"):
		return &hintedError{message, "bj.star and *_test.star belong to no package"}
	case isFile(l.tree.Workspace.Path(file)):
		return &hintedError{message, "it lies in a folder that is skipped: one that begins with . or _, a bazel-* link, or a workspace of its own"}
	}
	var near []string
	for _, m := range l.tree.Modules {
		if m.Package == lab.Package {
			near = append(near, path.Base(m.File))
		}
	}
	if n := Nearest(lab.Name, near); n != "" {
		return &hintedError{message, "did you mean " + Label{Package: lab.Package, Name: n}.String() + "?"}
	}
	if len(near) == 0 {
		return &hintedError{message, fmt.Sprintf("there is no package //%s", lab.Package)}
	}
	return &hintedError{message, fmt.Sprintf("package //%s has %s", lab.Package, strings.Join(near, ", "))}
}

// addLibrary adds the files of the library that are loaded, and does f with
// each.
func (l *loader) addLibrary(ctx context.Context, f func(*Module) error) error {
	t := l.tree
	for i := 0; i < len(t.Modules); i++ { // grows
		for _, ld := range t.Modules[i].Loads {
			if t.byFile[ld.File] == nil && strings.HasPrefix(ld.File, stdlibPrefix) {
				m := &Module{File: ld.File, Package: packageOfFile(ld.File)}
				t.byFile[ld.File] = m
				t.Modules = append(t.Modules, m)
				if err := f(m); err != nil {
					return err
				}
			}
		}
	}
	return ctx.Err()
}

// evaluateAll runs every module after those that it loads.
func (l *loader) evaluateAll(ctx context.Context) error {
	t := l.tree
	waiting := make(map[*Module]int, len(t.Modules))
	users := make(map[*Module][]*Module)
	var ready []*Module
	for _, m := range t.Modules {
		seen := map[string]bool{}
		for _, ld := range m.Loads {
			if !seen[ld.File] && ld.File != m.File {
				seen[ld.File] = true
				users[t.byFile[ld.File]] = append(users[t.byFile[ld.File]], m)
				waiting[m]++
			}
		}
		if waiting[m] == 0 {
			ready = append(ready, m)
		}
	}
	// Modules in a cycle are broken: nobody waits for them.
	inCycle := func(m *Module) bool { return m.Broken && waiting[m] > 0 }
	for _, m := range t.Modules {
		if inCycle(m) {
			waiting[m] = 0
			ready = append(ready, m)
		}
	}
	queue := make(chan *Module, len(t.Modules))
	for _, m := range ready {
		queue <- m
	}
	left := len(t.Modules)
	if left == 0 {
		return ctx.Err()
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	done := func(m *Module) {
		mu.Lock()
		defer mu.Unlock()
		for _, u := range users[m] {
			if waiting[u] == 0 {
				continue // was in a cycle
			}
			if waiting[u]--; waiting[u] == 0 {
				queue <- u
			}
		}
		if left--; left == 0 {
			close(queue)
		}
	}
	for range l.opts.Jobs {
		wg.Go(func() {
			for m := range queue {
				if ctx.Err() == nil && !m.cached {
					l.evaluate(m, l.env)
					m.prog = nil
					if len(users[m]) == 0 {
						m.globals = nil
					}
					if len(m.Diags) == 0 {
						m.src = nil
					}
				}
				done(m)
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// evaluate runs one module whose loads have been run.
func (l *loader) evaluate(m *Module, env starlark.StringDict) {
	loads := make([]*Module, 0, len(m.Loads))
	for _, ld := range m.Loads {
		dep := l.tree.byFile[ld.File]
		loads = append(loads, dep)
		if dep.Broken {
			m.Broken = true // said where it was broken
			continue
		}
		for _, n := range ld.names {
			if dep.globals[n.name] == nil && !m.Broken {
				m.Diags = append(m.Diags, diag.Diagnostic{Pos: n.pos, Severity: diag.Error, Rule: "load",
					Message: fmt.Sprintf("%s has no %s", ld.Label, n.name),
					Hint:    DidYouMean(n.name, exported(dep.globals), "")})
			}
		}
	}
	if m.undefined != nil && len(loads) == countGood(loads) {
		env = merged(env, m.undefined)
	} else if m.Broken || m.Diags.HasErrors() {
		m.Broken = true
		return
	}
	// What an attempt makes is published only when it ends: one that is
	// abandoned goes on writing to its own copy.
	var result atomic.Pointer[Module]
	err := l.guard.run(
		func() *starlark.Thread {
			attempt := &Module{File: m.File, Package: m.Package, Doc: m.Doc, Loads: m.Loads, src: m.src}
			if l.opts.Begin != nil {
				attempt.State = l.opts.Begin(attempt, loads)
			}
			return l.newThread(attempt)
		},
		func(thread *starlark.Thread) error {
			attempt := moduleOf(thread)
			globals, err := m.prog.Init(thread, env)
			if err == nil && thread.ExecutionSteps() > maxFlatSteps {
				err = checkDepth(globals)
			}
			if err == nil || thread.ExecutionSteps() <= maxFlatSteps {
				globals.Freeze()
			}
			attempt.globals = globals
			result.Store(attempt)
			return err
		})
	attempt := result.Load()
	if attempt != nil {
		m.State, m.globals = attempt.State, attempt.globals
		m.printed.Store(attempt.printed.Load())
	}
	if err != nil && m.undefined == nil {
		m.failEval(err) // else it may only follow from what was said already
	}
	if l.opts.End != nil && !m.Broken {
		m.Facts = l.opts.End(m)
	}
}

func countGood(modules []*Module) int {
	n := 0
	for _, m := range modules {
		if !m.Broken {
			n++
		}
	}
	return n
}

func merged(a, b starlark.StringDict) starlark.StringDict {
	m := maps.Clone(a)
	maps.Copy(m, b)
	return m
}

func exported(globals starlark.StringDict) []string {
	return slices.DeleteFunc(globals.Keys(), func(n string) bool { return strings.HasPrefix(n, "_") })
}

const moduleLocal = "module"

func (l *loader) newThread(m *Module) *starlark.Thread {
	loads := m.Loads
	t := &starlark.Thread{
		Name: m.File,
		Load: func(_ *starlark.Thread, label string) (starlark.StringDict, error) {
			for _, ld := range loads {
				if ld.Label == label {
					return l.tree.byFile[ld.File].globals, nil
				}
			}
			return nil, fmt.Errorf("no such module")
		},
		Print: func(thread *starlark.Thread, text string) {
			m.printed.Store(true)
			if l.opts.Print != nil {
				pos, _ := Place(thread)
				l.opts.Print(pos, text)
			}
		},
	}
	t.SetLocal(moduleLocal, m)
	return t
}

func moduleOf(thread *starlark.Thread) *Module {
	m, _ := thread.Local(moduleLocal).(*Module)
	return m
}

// StateOf returns the State of the module whose top level is running.
func StateOf(thread *starlark.Thread) any { return moduleOf(thread).State }
