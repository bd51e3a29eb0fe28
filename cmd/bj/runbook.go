package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"bj/fleet"
	"bj/graph"
	"bj/run/event"
	"bj/runbook"
)

// runbookFlags are the flags of bj runbook.
type runbookFlags struct{ output, machines, results string }

func runbookCommand() *command {
	var f runbookFlags
	return &command{
		name:  "runbook",
		args:  "PATTERN...",
		short: "writes how an operator brings services back, from recipes and recorded runs",
		long: patternHelp + `

without -o it is shown in the terminal. with -o it is a site of files that need
no server and no network: of each recipe, and of those that bring back what it
needs, a page as markdown and as HTML, an index, a page with the black start of the whole fleet, and the recovery graph.
other recipes' pages that are there already are written again.

hosts.csv fills in machines of your own. its first line names its columns, of
which only machine is needed: machine,name,address,address6,recipe. names and
addresses of recipes are replaced in commands and files where they stand by
themselves, and the page says which.`,
		example: `  bj runbook //recipes/etcd
  bj runbook //... -o /media/stick/runbooks
  bj runbook //recipes/etcd:cold_start --machines hosts.csv`,
		flags: func(fs *pflag.FlagSet) {
			fs.StringVarP(&f.output, "output", "o", "", "write pages into `folder`")
			fs.StringVar(&f.machines, "machines", "", "take machines' names and addresses from `file`")
			fs.StringVar(&f.results, "results", "", "recorded runs in `folder`; in the user's folder for state if empty")
		},
		run: f.run,
	}
}

func (f *runbookFlags) run(ctx context.Context, e *env, args []string) error {
	if len(args) == 0 {
		return usage("everything is bj runbook //... -o DIR", "bj runbook needs a pattern")
	}
	l, err := loadFleet(ctx, e, args, true)
	if err != nil {
		return err
	}
	results, err := recordsOf(e, l, f.results)
	if err != nil {
		return err
	}
	var machines *runbook.Machines
	if f.machines != "" {
		data, err := os.ReadFile(e.path(f.machines))
		if err != nil {
			return usage("", "--machines: %w", err)
		}
		if machines, err = runbook.ReadMachines(data); err != nil {
			return usage("its first line is machine,name,address", "--machines: %s: %w", f.machines, err)
		}
		if unknown := machines.Unknown(l.fleet); len(unknown) > 0 {
			return usage("bj show LABEL lists a recipe's machines", "--machines: %s: no recipe has %s", f.machines, strings.Join(unknown, ", "))
		}
	}
	w, err := newWriter(l, results, machines)
	if err != nil {
		return err
	}
	if f.output != "" {
		return w.site(ctx, e.path(f.output), l.recipes)
	}
	var b bytes.Buffer
	for _, r := range l.recipes {
		p, err := w.book.Page(r)
		if err != nil {
			return err
		}
		if b.Len() > 0 {
			b.WriteString("\n")
		}
		b.Write(p.Markdown)
	}
	return e.showMarkdown(ctx, b.Bytes())
}

// showMarkdown shows a text on a terminal laid out, through a pager, and as it
// is elsewhere: it reads well so.
func (e *env) showMarkdown(ctx context.Context, text []byte) error {
	if !terminal(e.stdout) {
		return e.page(ctx, text)
	}
	var b bytes.Buffer
	if err := runbook.Terminal(&b, text, min(width(screenOf(e.stdout)), 100), e.colored(e.stdout)); err != nil {
		return err
	}
	return e.page(ctx, b.Bytes())
}

// page shows text through a pager on a terminal, and as it is elsewhere.
func (e *env) page(ctx context.Context, text []byte) error {
	pager := e.getenv("PAGER")
	if pager == "" {
		if _, err := exec.LookPath("less"); err == nil {
			pager = "less"
		}
	}
	if !terminal(e.stdout) || pager == "" || pager == "cat" || e.getenv("TERM") == "dumb" {
		_, err := e.stdout.drawn().Write(text)
		return err
	}
	c := exec.CommandContext(ctx, "/bin/sh", "-c", pager)
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(text), screenOf(e.stdout), e.stderr
	c.Env = os.Environ()
	if e.getenv("LESS") == "" {
		c.Env = append(c.Env, "LESS=FRX")
	}
	var exit *exec.ExitError
	err := c.Run()
	if errors.As(err, &exit) && exit.ExitCode() != 127 || err == nil {
		return nil // it was left, with or without reading to the end
	}
	_, err = e.stdout.drawn().Write(text) // there is no pager
	return err
}

// recordsOf returns what reads recorded runs; nil where there are none.
func recordsOf(e *env, l *loaded, flag string) (func(label string) []event.Record, error) {
	dir, err := e.resultsDir(flag, workspaceName(cmp.Or(l.fleet.Workspace.Name, l.workspace.Root)))
	if err == nil {
		_, err = os.Stat(dir)
	}
	switch {
	case err == nil:
		return func(label string) []event.Record {
			records, err := event.Records(dir, label)
			if err != nil {
				e.say("warning: " + err.Error())
			}
			return records
		}, nil
	case flag != "" || e.getenv("BJ_RESULTS") != "":
		return nil, usage("bj test records runs there", "--results: %w", err)
	}
	return nil, nil
}

// pageWriter writes pages into folders.
type pageWriter struct {
	book  *runbook.Book
	graph *graph.Graph
	l     *loaded
	title string
}

// newWriter returns what writes pages of l.
func newWriter(l *loaded, records func(label string) []event.Record, machines *runbook.Machines) (*pageWriter, error) {
	o := graph.Options{Results: records, Digest: l.digestIn}
	for _, file := range l.fleet.Workspace.Known {
		saved, err := readSaved(l.workspace, file)
		if err != nil {
			return nil, err
		}
		o.Known = append(o.Known, saved)
	}
	g, err := graph.New(l.fleet, o)
	if err != nil {
		return nil, err
	}
	book := runbook.New(runbook.Options{Fleet: l.fleet, Graph: g, Read: l.read, Digest: l.digestIn, Records: records, Version: version, Machines: machines})
	return &pageWriter{book: book, graph: g, l: l, title: "Recovery graph"}, nil
}

// read returns the content of a file of the workspace.
func (l *loaded) read(name string) ([]byte, error) {
	if !filepath.IsAbs(name) {
		name = l.workspace.Path(name)
	}
	return os.ReadFile(name)
}

// page writes both forms of a recipe's page.
func (w *pageWriter) page(dir string, r *fleet.Recipe) error {
	p, err := w.book.Page(r)
	if err != nil {
		return err
	}
	return w.both(dir, p)
}

func (w *pageWriter) both(dir string, p runbook.Page) error {
	page, err := runbook.HTML(p)
	if err != nil {
		return err
	}
	return errors.Join(writePage(dir, p.Name+".md", p.Markdown), writePage(dir, p.Name+".html", page))
}

// writePage writes one file of a folder of pages.
func writePage(dir, name string, data []byte) error {
	if err := event.WriteFile(filepath.Join(dir, name), data); err != nil {
		return fmt.Errorf("writing runbooks: %w", err)
	}
	return nil
}

// site writes the pages of recipes, of what they need, those that belong to all,
// and again those that are there: one folder tells one story.
func (w *pageWriter) site(ctx context.Context, dir string, recipes []*fleet.Recipe) error {
	free, err := holdPages(ctx, dir)
	if err != nil {
		return err
	}
	defer free()
	for _, r := range w.book.Needed(append(w.there(dir), recipes...)) {
		if err := w.page(dir, r); err != nil {
			return err
		}
	}
	return w.index(dir)
}

// there returns the recipes that have a page.
func (w *pageWriter) there(dir string) []*fleet.Recipe {
	return slices.DeleteFunc(slices.Clone(w.l.fleet.Recipes), func(r *fleet.Recipe) bool { return !hasPage(dir, r) })
}

// hasPage reports whether a recipe has a page.
func hasPage(dir string, r *fleet.Recipe) bool {
	_, err := os.Stat(filepath.Join(dir, runbook.Name(r.Label)+".html"))
	return err == nil
}

// holdPages makes a folder of pages, and keeps every other bj from writing into
// it: of two that write the same page the second has read what the first has
// recorded. Free lets others in again.
func holdPages(ctx context.Context, dir string) (free func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("writing runbooks: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("writing runbooks: %w", err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		// A file system that knows no locks of folders is not shared by many.
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			event.Sweep(dir)
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return func() { f.Close() }, nil
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			f.Close()
			return nil, fmt.Errorf("writing runbooks: another bj has been writing into %s for a minute", dir)
		}
	}
}

// index writes the pages that belong to no recipe. The index lists what is there.
func (w *pageWriter) index(dir string) error {
	recipes := w.there(dir)
	start, err := w.book.BlackStart(func(r *fleet.Recipe) bool { return slices.Contains(recipes, r) })
	if err != nil {
		return err
	}
	if err := w.both(dir, start); err != nil {
		return err
	}
	cycles := w.graph.Cycles()
	cycles.Waive(w.l.fleet.Workspace.Waivers, time.Time{})
	var svg bytes.Buffer
	if err := w.graph.Picture(cycles).WriteSVG(&svg, w.title); err != nil {
		return err
	}
	index, entries, err := w.book.Index(recipes)
	if err != nil {
		return err
	}
	page, err := runbook.IndexHTML(index, entries, svg.String())
	if err != nil {
		return err
	}
	return errors.Join(writePage(dir, runbook.PictureName, svg.Bytes()), writePage(dir, index.Name+".md", index.Markdown), writePage(dir, index.Name+".html", page))
}

// runbooks is what rewrites pages at verdicts: a fold over records.
type runbooks struct {
	dir     string
	l       *loaded
	records func(label string) []event.Record

	mu     sync.Mutex
	writer *pageWriter
	err    error // the first
}

// done rewrites the page of a recipe whose run was recorded, and writes those
// that it leads to and that are not there.
func (b *runbooks) done(x event.Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r := b.l.fleet.Recipe(x.Recipe); r != nil {
		if err := b.write(r); err != nil && b.err == nil {
			b.err = err
		}
	}
}

func (b *runbooks) write(r *fleet.Recipe) (err error) {
	if b.writer == nil { // waves do not change by results
		if b.writer, err = newWriter(b.l, b.records, nil); err != nil {
			return err
		}
	}
	// A verdict is told when the run may be over already.
	free, err := holdPages(context.Background(), b.dir)
	if err != nil {
		return err
	}
	defer free()
	for _, n := range b.writer.book.Needed([]*fleet.Recipe{r}) {
		if n == r || !hasPage(b.dir, n) {
			if err := b.writer.page(b.dir, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// close writes what belongs to all recipes whose pages are there.
func (b *runbooks) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil || b.writer == nil {
		return b.err
	}
	free, err := holdPages(context.Background(), b.dir)
	if err != nil {
		return err
	}
	defer free()
	w, err := newWriter(b.l, b.records, nil) // with what was recorded meanwhile
	if err != nil {
		return err
	}
	return w.index(b.dir)
}

// gitRevision returns the commit of a folder, with a + where files differ from
// it; it is empty where git does not say.
func gitRevision(ctx context.Context, root string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	git := func(args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, "git", append([]string{"-C", root}, args...)...).Output()
		return strings.TrimSpace(string(out)), err
	}
	rev, err := git("rev-parse", "HEAD")
	if err != nil {
		return ""
	}
	if changed, err := git("status", "--porcelain", "--", "."); err == nil && changed != "" {
		rev += "+"
	}
	return rev
}
