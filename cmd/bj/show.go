package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"

	"bj/fleet"
	"bj/run"
	"bj/run/event"
)

// recipeSchema names the format of bj show --json.
const recipeSchema = "bj.recipe/1"

func showCommand() *command {
	var asJSON bool
	return &command{
		name:  "show",
		args:  "LABEL",
		short: "prints one recipe as the interpreter sees it",
		long:  `macros are expanded, defaults filled in, scripts made for each machine.`,
		example: `  bj show //recipes/etcd:cold_start
  bj show :cold_start --json | jq .recipe.strategy`,
		flags: func(fs *pflag.FlagSet) {
			fs.BoolVar(&asJSON, "json", false, "print JSON, as "+recipeSchema)
		},
		run: func(ctx context.Context, e *env, args []string) error { return runShow(ctx, e, args, asJSON) },
	}
}

func runShow(ctx context.Context, e *env, args []string, asJSON bool) error {
	if len(args) != 1 {
		return usage("bj list lists labels", "bj show takes one label, and got %d", len(args))
	}
	l, err := loadFleet(ctx, e, args, true)
	if err != nil {
		return err
	}
	if len(l.recipes) != 1 {
		var labels []string
		for _, r := range l.recipes {
			labels = append(labels, r.Label)
		}
		return usage("name one of them: "+strings.Join(labels, " "), "%s names %s", args[0], plural(len(l.recipes), "recipe"))
	}
	r := l.recipes[0]
	service := l.fleet.Service(r.Service)
	if asJSON {
		enc := json.NewEncoder(e.stdout)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(struct {
			Schema  string         `json:"schema"`
			Recipe  *fleet.Recipe  `json:"recipe"`
			Service *fleet.Service `json:"service"`
		}{recipeSchema, r, service})
	}
	return showRecipe(e.stdout, r, service)
}

// showRecipe prints a recipe for people.
func showRecipe(out io.Writer, r *fleet.Recipe, s *fleet.Service) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	field := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, oneLine(fmt.Sprintf(format, args...)))
	}
	field("recipe", "%s", r.Label)
	field("at", "%s", r.Pos)
	if r.Doc != "" {
		field("doc", "%s", r.Doc)
	}
	field("service", "%s", r.Service)
	if s != nil {
		field("owner", "%s", s.Owner)
		field("listens", "%s", orNone(ports(s.Listens)))
	}
	field("restores", "%s", strings.Join(r.Restores, ", "))
	field("within", "%s", fleet.FormatDuration(r.Within))
	if r.Estimate != nil {
		field("estimate", "%s", fleet.FormatDuration(*r.Estimate))
	}
	if len(r.Tags) > 0 {
		field("tags", "%s", strings.Join(r.Tags, ", "))
	}
	fmt.Fprintf(w, "files\t%s\n", strings.Join(r.Modules, "\n\t"))

	fmt.Fprintf(w, "\nhardware\n")
	for _, h := range r.Hardware {
		for _, m := range h.Machines {
			fmt.Fprintf(w, "  %s\t%s %s, %s, %s of memory, %s of disk\n", m.Name, m.V4, m.V6, plural(h.CPUs, "cpu"), fleet.FormatSize(h.Memory), fleet.FormatSize(h.Disk))
		}
	}
	fmt.Fprintf(w, "\ntooling\n")
	for _, t := range r.Tools {
		fmt.Fprintf(w, "  tool %s\t%s\n", t.Name, t.Source())
	}
	for _, f := range r.Files {
		from := fmt.Sprintf("%d bytes", len(f.Content))
		if f.Source != "" {
			from = f.Source
		}
		fmt.Fprintf(w, "  file %s\t%s, mode %04o%s\n", f.Path, from, f.Mode, on(f.On))
	}
	for _, x := range r.Secrets {
		fmt.Fprintf(w, "  secret %s\t%s\n", x.Name, oneLine(x.Where))
	}
	none(w, len(r.Tools)+len(r.Files)+len(r.Secrets))
	fmt.Fprintf(w, "\nconditions\n")
	for _, c := range r.Conditions {
		fmt.Fprintf(w, "  %s\t%s%s\n", oneLine(run.WithOnly(c.Text, c.Only)), oneLine(c.Why), on(c.On))
	}
	none(w, len(r.Conditions))
	fmt.Fprintf(w, "\nstrategy\n")
	for i, a := range r.Strategy {
		number := fmt.Sprintf("  %d ", i+1)
		switch {
		case a.Step != nil:
			kind := "step"
			switch {
			case len(a.Step.Run) == 0:
				kind = "by hand"
			case a.Step.Daemon:
				kind = "daemon " + a.Step.Unit
			}
			fmt.Fprintf(w, "%s%s\t%s (within %s%s)\n", number, kind, oneLine(a.Step.Title), fleet.FormatDuration(a.Step.Within), on(a.Step.On))
			scripts(w, a.Step.Run)
		case a.Validation != nil:
			validation(w, number+"validate", a.Validation)
		case a.Fault != nil:
			what := "crash"
			switch {
			case a.Fault.Kill != "":
				what = "kill " + a.Fault.Kill
			case a.Fault.Dark != "":
				what = "darken " + a.Fault.Dark
			}
			fmt.Fprintf(w, "%sfault\t%s (%s%s)\n", number, oneLine(a.Fault.Title), what, on(a.Fault.On))
		}
	}
	fmt.Fprintf(w, "\nvalidation\n")
	for _, v := range r.Validation {
		validation(w, "  validate", v)
	}
	return w.Flush()
}

// validation prints one validation.
func validation(w io.Writer, head string, v *fleet.Validation) {
	more := ""
	if v.Steady != 0 {
		more = fmt.Sprintf(", steady for %s", fleet.FormatDuration(v.Steady))
	}
	if v.AtLeast != len(v.On) {
		more += fmt.Sprintf(", on at least %d of %d", v.AtLeast, len(v.On))
	}
	if v.Invariant {
		more += ", an invariant"
	}
	fmt.Fprintf(w, "%s\t%s (within %s, every %s%s%s)\n", head, oneLine(v.Title), fleet.FormatDuration(v.Within), fleet.FormatDuration(v.Every), more, on(v.On))
	scripts(w, v.Run)
}

// scripts prints what runs: once where it is the same on every machine.
func scripts(w io.Writer, all []fleet.Script) {
	for i, s := range all {
		same := true
		for _, other := range all {
			same = same && other.Text == s.Text
		}
		if same && i > 0 {
			return
		}
		if !same {
			fmt.Fprintf(w, "      %s:\n", s.Machine)
		}
		for _, line := range dedent(s.Text) {
			fmt.Fprintf(w, "      | %s\n", line)
		}
	}
}

// dedent returns the lines of a script without what all of them are indented by,
// and without empty ones before and after.
func dedent(text string) []string {
	lines := strings.Split(strings.ReplaceAll(text, "\t", "    "), "\n")
	margin := -1
	for i, line := range lines {
		lines[i] = strings.TrimRight(line, " ")
		if depth := len(line) - len(strings.TrimLeft(line, " ")); lines[i] != "" && (margin < 0 || depth < margin) {
			margin = depth
		}
	}
	for i, line := range lines {
		lines[i] = line[min(max(margin, 0), len(line)):]
	}
	for len(lines) > 0 && lines[0] == "" {
		lines = lines[1:]
	}
	for len(lines) > 0 && lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

func none(w io.Writer, n int) {
	if n == 0 {
		fmt.Fprintln(w, "  none")
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// on names machines, where not all are meant.
func on(machines []string) string {
	if len(machines) == 0 {
		return ""
	}
	return ", on " + strings.Join(machines, " ")
}

// oneLine keeps text in its line and cell of a table.
func oneLine(s string) string { return strings.Join(strings.Fields(event.Clean(s)), " ") }

// ports lists ranges of ports as recipes write them.
func ports(all []fleet.Ports) string {
	var words []string
	for _, p := range all {
		words = append(words, p.String())
	}
	return strings.Join(words, ", ")
}
