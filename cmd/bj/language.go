package main

import (
	"fmt"
	"strings"

	"bj/builtins"
)

// meaning is what the reference says about a builtin beside its signature,
// which comes from the builtins themselves. A test holds that nothing is
// missing and nothing is left over.
type meaning struct {
	doc    string
	params [][2]string // name, meaning; in any order
}

// languageEntries makes the reference of the language.
func languageEntries() []entry {
	entries := []entry{{"Language", "language", languageIntro}}
	words := meanings()
	for _, b := range builtins.Reference() {
		entries = append(entries, entry{"Language", b.Name, builtinEntry(b, words[b.Name])})
	}
	return entries
}

// builtinEntry is the reference of one builtin.
func builtinEntry(b builtins.Builtin, m meaning) string {
	var signature []string
	for i, p := range b.Params {
		switch {
		case p.Required:
			signature = append(signature, p.Name)
		default:
			signature = append(signature, p.Name+" = "+p.Default)
		}
		if i == 0 && b.Rest != "" {
			signature = append(signature, "*"+b.Rest)
		}
	}
	var s strings.Builder
	fmt.Fprintf(&s, "### %s\n\n```python\n%s(%s)\n```\n\n%s\n", b.Name, b.Name, wrap(strings.Join(signature, ", "), len(b.Name)+1), m.doc)
	s.WriteString("\n| parameter | meaning |\n| --- | --- |\n")
	row := func(name, show string) {
		for _, p := range m.params {
			if p[0] == name {
				fmt.Fprintf(&s, "| `%s` | %s |\n", show, strings.ReplaceAll(p[1], "|", "\\|"))
			}
		}
	}
	for i, p := range b.Params {
		row(p.Name, p.Name)
		if i == 0 && b.Rest != "" {
			row(b.Rest, "*"+b.Rest)
		}
	}
	return s.String()
}

// wrap breaks a signature at its commas, before column 80.
func wrap(s string, margin int) string {
	var b strings.Builder
	column := margin
	for i, part := range strings.Split(s, ", ") {
		if i > 0 {
			b.WriteByte(',')
			if column+len(part)+3 > 80 {
				b.WriteString("\n" + strings.Repeat(" ", margin))
				column = margin
			} else {
				b.WriteByte(' ')
				column += 2
			}
		}
		b.WriteString(part)
		column += len(part)
	}
	return b.String()
}

const languageIntro = `Recipes are written in Starlark: Python's syntax without its surprises, with
top-level ` + "`for` and `if`" + `, without ` + "`while`" + `, recursion, clock, randomness or I/O.
` + "`json`, `math`, `struct` and `fail`" + ` are there too.

A workspace is the nearest folder upwards that holds ` + "`bj.star`" + `; a package is a
folder of it, and every ` + "`*.star`" + ` file in it belongs to it. ` + "`load(\"//lib:ports.star\", \"PORTS\")`" + `
takes names from another file.

- **scripts** run as ` + "`/bin/sh -e`" + ` in ` + "`/root`" + `, without input, in a fresh shell for each step; nothing persists but files, background processes and captures; a command behind ` + "`!`" + ` counts only as the last one
- **expect** is an RE2 regular expression, not anchored, over stdout, then stderr
- **sizes** are whole numbers of ` + "`KiB`, `MiB`, `GiB`" + `, **times** ` + "`\"1h30m\"`, `\"45s\"`, `\"200ms\"`" + `; a bare number is a mistake
- **names** of services are made of letters, digits and ` + "`._+@:/-`" + `, those of recipes, pathways and units of letters, digits and ` + "`._+-`" + `, captures and secrets of capitals, digits and ` + "`_`" + `
`

// meanings are the words of every builtin.
func meanings() map[string]meaning {
	return map[string]meaning{
		"service": {
			doc: "A node of the recovery graph and, for others, a capability that they can allow.",
			params: [][2]string{
				{"name", "what others allow"},
				{"owner", "who is asked in an outage"},
				{"doc", "what it does"},
				{"kind", "`service`, `library`, `sidecar` or `tool`"},
				{"listens", "ports that it opens itself (`2181`, `\"53/udp\"`, `\"8000-8010\"`): open within and between its own recipe's machines, and nowhere else"},
				{"endpoints", "pathway → list of endpoints in production; a pathway is a named subset: a cluster, a read-only path. without it there is one pathway, `default`, that opens nothing"},
			},
		},
		"recipe": {
			doc: "One recovery scenario of one service. A service may have several: alternatives.",
			params: [][2]string{
				{"name", "unique in the package"},
				{"service", "the service that it brings back"},
				{"hardware", "list of `hardware`: the machines it starts from, empty"},
				{"strategy", "list of `step`, `validate` and `fault`, in order"},
				{"validation", "list of `validate`: when it counts as recovered"},
				{"tooling", "list of `tool`, `file` and `secret`: what is there before the seal closes"},
				{"conditions", "list of `allow`: what may be healthy; everything else is dark"},
				{"restores", "the pathways that it brings back; all if None"},
				{"doc", "when and why an operator takes this way"},
				{"tags", "`manual` keeps it out of wildcard patterns of `bj test`"},
				{"within", "how long it may take, from the first step"},
				{"estimate", "how long it takes, until results say"},
			},
		},
		"hardware": {
			doc: "Machines `name` (count 1) or `name-0` … `name-(n-1)`. It can be iterated and indexed; a machine has `.name`, `.index`, `.address`, `.tcp(port)` and `.udp(port)`. They know each other by a hosts file.",
			params: [][2]string{
				{"name", "a lower-case DNS label"},
				{"count", "how many"},
				{"cpus", "of each"},
				{"memory", "of each"},
				{"disk", "of each"},
				{"image", "what they boot; the workspace's if None"},
				{"addresses", "one for each machine; `198.18.0.10` and `fd62:6a::10` upwards if empty"},
				{"doc", "what an operator should know of it"},
			},
		},
		"image": {
			doc: "What a machine boots: one of `debian`, `oci`, `disk` and `host`.",
			params: [][2]string{
				{"name", "for people"},
				{"debian", "Debian packages that it is made of"},
				{"oci", "path of an OCI image"},
				{"disk", "path of a disk image, qcow2 or raw, with or without `@sha256:` and its digest"},
				{"host", "the host's own programs"},
				{"suite", "Debian's release"},
				{"kernel", "its kernel"},
				{"systemd", "its own systemd boots when the seal holds, so that steps may use `systemctl`"},
			},
		},
		"tool": {
			doc: "A program put on `PATH` of every machine before the seal closes, from one of `path`, `go`, `deb`, `url` and `target`. `bj test --tool NAME=PATH` puts a release candidate in its place.",
			params: [][2]string{
				{"name", "as it is called on the machine"},
				{"path", "a program of this host, relative to the package"},
				{"go", "`module/cmd@version`, or `./cmd/x` of the workspace's own module; built once and cached"},
				{"deb", "a Debian package, with or without `=version`, unpacked with what it depends on"},
				{"url", "where it is fetched, with `sha256`"},
				{"sha256", "of what `url` gives"},
				{"target", "a Bazel label"},
				{"kept", "where an operator finds it in an outage: words, or an `allow(...)`, which is an edge of the graph then"},
				{"doc", "what it does"},
			},
		},
		"file": {
			doc: "A file put there before the seal closes; in `tooling`.",
			params: [][2]string{
				{"path", "absolute, on the machine"},
				{"content", "its text"},
				{"source", "or a file, relative to the package"},
				{"mode", "permissions, octal"},
				{"on", "machines; all if None"},
			},
		},
		"secret": {
			doc: "A value that steps see as `$NAME`; in `tooling`. It is masked in every stream, event, log and page.",
			params: [][2]string{
				{"name", "of the variable"},
				{"test", "its value in tests: a string, or a file of the package"},
				{"where", "where the real one is kept, for the runbook"},
			},
		},
		"allow": {
			doc: "One recovery condition: this may be healthy. `allow(\"*\")` opens everything in production but the host itself, for onboarding; it proves no way back.",
			params: [][2]string{
				{"what", "a service, its name, or an endpoint"},
				{"pathways", "of the service; none need be named where there is one, `\"*\"` is all"},
				{"only", "units that may use it, by the names that steps give them; all, and what belongs to no unit, if None. As an ordinary user such a recipe is an error"},
				{"on", "machines that may use it; all if None"},
				{"why", "what it is needed for"},
				{"effort", "how hard it would be to live without, for `bj graph --cuts`"},
			},
		},
		"endpoint": {
			doc: "Something that can be reached: `tcp://` and `udp://` (host, CIDR or name, with port or range), `icmp://`, `http://` and `https://` (with a path prefix by whole segments), `dns://*.pkgs.internal` (names that may be resolved), `unix:///run/x.sock` (a local daemon), `lib:///usr/lib/libfoo.so*` (a library). A plain string stands for `endpoint(string)`.",
			params: [][2]string{
				{"url", "as above"},
				{"methods", "HTTP methods; all if empty"},
				{"ca", "the certificate authority that it is trusted by"},
			},
		},
		"step": {
			doc: "One thing that an operator does, on every machine of `on` at once.",
			params: [][2]string{
				{"title", "what is done, for people"},
				{"run", "a script, or a function of the machine that returns one; without it a step by hand, which is not tested: proven except for it"},
				{"on", "machines; all if None"},
				{"doc", "more for people"},
				{"within", "how long it may take"},
				{"daemon", "keeps running; done once started, or when its output matches `expect`; its end fails the recipe"},
				{"restart", "a daemon that ends is started again, as an init system would"},
				{"unit", "name of the process group; made from the title if None"},
				{"user", "who runs it"},
				{"env", "variables"},
				{"expect", "what its output must match"},
				{"capture", "name under which later steps see its stdout"},
				{"masked", "the capture is a secret"},
				{"retry", "how often it is tried again"},
				{"if_fails", "words for the operator"},
				{"danger", "words for the operator, before"},
			},
		},
		"validate": {
			doc: "Holds when `run` exits as told and its output matches, on enough machines in the same round. One that holds on empty hardware already proves nothing: the verdict is an error, `vacuous`.",
			params: [][2]string{
				{"title", "what holds, for people"},
				{"run", "a script, or a function of the machine that returns one"},
				{"on", "machines; all if None"},
				{"expect", "what its output must match"},
				{"exit", "how it must exit"},
				{"within", "how long it may take to hold"},
				{"every", "time between rounds"},
				{"steady", "how long it must hold"},
				{"at_least", "on how many machines in the same round; all if None"},
				{"invariant", "holds on empty hardware, too, and must hold again"},
				{"doc", "more for people"},
			},
		},
		"fault": {
			doc: "Something that goes wrong on purpose, in `strategy`: one of `kill`, `crash` and `dark`. It is done by bj and witnessed, and is part of what was proven.",
			params: [][2]string{
				{"title", "what goes wrong, for people"},
				{"on", "machines"},
				{"kill", "a unit whose processes are killed: a step's, or a service of an image's systemd (`\"nginx.service\"`)"},
				{"crash", "the machine loses power, for good"},
				{"dark", "a condition that is closed from here on"},
			},
		},
		"workspace": {
			doc: "Settings of the whole tree, in `bj.star` only, at most once.",
			params: [][2]string{
				{"name", "of the workspace"},
				{"bj", "versions of bj that can read it: `\">=0.1\"`"},
				{"sandbox", "the provider, as `--sandbox`"},
				{"supply", "where allowed capabilities come from, as `--supply`"},
				{"image", "what machines boot"},
				{"waivers", "cycles that are known, with owner, reason and expiry"},
				{"known", "graphs saved by other repositories, whose services may be allowed"},
			},
		},
	}
}
