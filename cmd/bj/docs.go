package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"bj/lang"
	"bj/run/event"
)

func docsCommand() *command {
	return &command{
		name:  "docs",
		args:  "[NAME...]",
		short: "prints the reference of the language and the commands",
		long: `prints all of it, or only what the names name: builtins, commands,
"environment", "events" or "exit". on a terminal it is laid out for reading, and
goes through $PAGER, or less; elsewhere it is markdown.`,
		example: `  bj docs allow validate
  bj docs > reference.md`,
		run: runDocs,
	}
}

func runDocs(ctx context.Context, e *env, args []string) error {
	var b bytes.Buffer
	if len(args) == 0 {
		if err := writeReference(&b); err != nil {
			return err
		}
		return e.showMarkdown(ctx, b.Bytes())
	}
	entries := referenceEntries()
	var names []string
	for _, entry := range entries {
		names = append(names, entry.name)
	}
	for _, arg := range args {
		found := false
		for _, entry := range entries {
			if entry.name == arg {
				found = true
				if !strings.HasPrefix(entry.text, "#") { // it is all of its chapter
					b.WriteString("## " + entry.chapter + "\n\n")
				}
				b.WriteString(strings.TrimSpace(entry.text) + "\n\n")
			}
		}
		if !found {
			hint := "bj docs prints all of the reference"
			if near := lang.Nearest(arg, names); near != "" {
				hint = fmt.Sprintf("did you mean bj docs %s?", near)
			}
			return usage(hint, "the reference does not have %q", arg)
		}
	}
	return e.showMarkdown(ctx, b.Bytes())
}

// entry is one section of the reference.
type entry struct {
	chapter string
	name    string
	text    string // markdown, with its heading
}

// writeReference writes the whole reference; docs/reference.md is its output.
func writeReference(w io.Writer) error {
	var b strings.Builder
	b.WriteString("# Reference\n\nMade by `bj docs` from the program itself; `bj docs NAME` prints one entry.\n")
	chapter := ""
	for _, e := range referenceEntries() {
		if e.chapter != chapter {
			chapter = e.chapter
			fmt.Fprintf(&b, "\n## %s\n", chapter)
		}
		b.WriteString("\n" + strings.TrimSpace(e.text) + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// referenceEntries makes the reference of what the program consists of.
func referenceEntries() []entry {
	entries := languageEntries()
	for _, c := range commands() {
		entries = append(entries, entry{"Commands", c.name, commandEntry(c)})
	}
	var b strings.Builder
	b.WriteString("### Flags of all commands\n\n```\n")
	b.WriteString(globalFlags(&env{}).FlagUsages())
	b.WriteString("```\n")
	entries = append(entries, entry{"Commands", "flags", b.String()})

	b.Reset()
	b.WriteString("A flag beats a variable, which beats `workspace(...)` in `bj.star`, which beats the default.\n\n| variable | meaning |\n| --- | --- |\n")
	for _, v := range variables() {
		fmt.Fprintf(&b, "| `%s` | %s |\n", v.name, v.text)
	}
	entries = append(entries, entry{"Environment", "environment", b.String()})

	b.Reset()
	b.WriteString("`bj test --json` writes one JSON object a line. All but the first have `time`, and where they apply `recipe`, `supplier`, `machine`, `step` and `seconds`. A stream without `end` was cut off.\n\n| event | meaning |\n| --- | --- |\n")
	for _, x := range events {
		fmt.Fprintf(&b, "| `%s` | %s |\n", x.name, x.text)
	}
	entries = append(entries, entry{"Events", "events", b.String()})

	b.Reset()
	b.WriteString("Where several apply, the order is 130, 2, 4, 1, 3.\n\n| exit | meaning |\n| --- | --- |\n")
	for _, x := range exits {
		fmt.Fprintf(&b, "| %d | %s |\n", x.code, x.text)
	}
	return append(entries, entry{"Exit codes", "exit", b.String()})
}

// commandEntry is the reference of one command.
func commandEntry(c *command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "### bj %s\n\n%s.\n\n```\n%s\n", c.name, sentence(c.short), c.usage())
	if flags := c.flagUsages(); flags != "" {
		fmt.Fprintf(&b, "\n%s", flags)
	}
	b.WriteString("```\n")
	if c.long != "" {
		fmt.Fprintf(&b, "\n%s\n", sentences(c.long))
	}
	if c.example != "" {
		fmt.Fprintf(&b, "\n```sh\n%s\n```\n", strings.ReplaceAll(strings.TrimPrefix(c.example, "  "), "\n  ", "\n"))
	}
	return b.String()
}

// sentence writes help's lower case as prose.
func sentence(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// sentences is sentence for each of them.
func sentences(s string) string {
	begin := true
	return strings.Map(func(r rune) rune {
		switch {
		case r == '.':
			begin = true
			return r
		case r == ' ' || r == '\n':
			return r
		}
		if begin && 'a' <= r && r <= 'z' {
			r += 'A' - 'a'
		}
		begin = false
		return r
	}, s)
}

// variable is one of the environment that bj reads.
type variable struct{ name, text string }

// variables are those that bj reads.
func variables() []variable {
	return []variable{
		{"BJ_SANDBOX", "the provider, as `--sandbox`"},
		{"BJ_LIBVIRT_URI", "the libvirt that makes virtual machines, on this host; `qemu:///system` if empty"},
		{"BJ_SUPPLY", "where allowed capabilities come from, as `--supply`"},
		{"BJ_RESULTS", "folder of recorded runs, as `--results`; else `$XDG_STATE_HOME/bj/<workspace>`"},
		{"BJ_CACHE", "folder of the cache; else `$XDG_CACHE_HOME/bj`"},
		{"BJ_SHARD", "a part of the recipes, as `--shard`; else what a job array's engine says: " + engineNames()},
		{"BJ_DEBUG", "prints the stack where bj itself is at fault"},
		{"NO_COLOR", "no colours, unless `--color` says otherwise"},
		{"CLICOLOR_FORCE", "colours, also on a pipe"},
		{"GITHUB_ACTIONS", "if `true`: annotations of what did not recover, nine and a count, and a summary in `$GITHUB_STEP_SUMMARY`"},
		{"CI", "plain lines instead of live ones"},
	}
}

// engineNames lists the engines' variables.
func engineNames() string {
	var names []string
	for _, e := range engines {
		names = append(names, "`"+e.index+"`")
	}
	return strings.Join(names, ", ")
}

// events are those of the stream, in the order in which a recipe meets them.
var events = [...]struct{ name, text string }{
	{event.Start, "the first: `schema`, `version`, and of a part of the recipes `shard` and `recipes`"},
	{event.Note, "`text` for people: what is contacted, which limits are missing"},
	{event.Build, "`text`: a tool is being made"},
	{event.Lease, "machines were leased; `text` names the environment"},
	{event.Sealed, "the seal closed; `rules` are the packet filter's"},
	{event.CanaryTried, "something was tried that must not work: `held`, `probe`"},
	{event.StepStarted, "a step began on `machine`"},
	{event.OutputWritten, "a program printed `text` to `stream`"},
	{event.StepFinished, "a step ended with `exit`, null while a daemon runs"},
	{event.FaultDone, "a fault was done, and witnessed"},
	{event.ValidationStarted, "a validation began; `phase` is `empty`, `between` or `final`"},
	{event.ValidationFinished, "a validation `held`, or not"},
	{event.BlockedSeen, "the seal stopped an attempt: `process`, `protocol`, `destination`, `service`, `allow`, `closes_cycle`, `mattered`, `count`"},
	{event.UsedCounted, "how often a condition was used: `allow`, `file`, `line`, `count`, `bytes`"},
	{event.Released, "the environment was removed"},
	{event.VerdictGiven, "`verdict`, `code`, `reason`, `root`, `failed`"},
	{event.End, "the last: `exit`, `recovered`, `not_recovered`, `errors`"},
}

// exits are bj's exit codes.
var exits = [...]struct {
	code int
	text string
}{
	{exitOK, "every recipe recovered; no blocking cycle that is not waived; an empty shard; nothing changed"},
	{exitNotRecovered, "at least one did not recover; a blocking cycle that is not waived; `fmt --check` or `lint` found something"},
	{exitUsage, "usage, or a mistake in a `.star` file"},
	{exitError, "at least one `error`, and none that did not recover; this machine cannot do it; `bj` itself could not read or write something"},
	{exitNothing, "a pattern matched nothing, or only `manual` recipes; nothing is run"},
	{exitInterrupted, "interrupted (Ctrl-C, SIGTERM); environments are torn down first"},
}
