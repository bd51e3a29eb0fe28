package main

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/syntax"

	"bj/fleet"
	"bj/lang/diag"
)

// lintFleet looks at what files declare together. The rules' words are in
// lintRules.
func lintFleet(f *fleet.Fleet) diag.List {
	var found diag.List
	add := func(pos diag.Pos, rule, hint, format string, args ...any) {
		found = append(found, diag.Diagnostic{Pos: pos, Severity: diag.Warning, Rule: rule, Message: fmt.Sprintf(format, args...), Hint: hint})
	}
	for _, s := range f.Services {
		if s.Known == "" && slices.Contains(nobody, strings.ToLower(strings.TrimSpace(s.Owner))) {
			add(s.Pos, "recipe-owner", `owner = "names-oncall"`, "%s has no owner: %q answers no call", s.Name, s.Owner)
		}
	}
	for _, r := range f.Recipes {
		for _, c := range r.Conditions {
			if s, p := ownerOf(f, c.Endpoint); s != nil {
				line := fmt.Sprintf("allow(%q)", s.Name)
				if len(s.Pathways) > 1 {
					line = fmt.Sprintf("allow(%q, %q)", s.Name, p)
				}
				add(c.Pos, "endpoint-owned", line+", so that the graph knows", "%s belongs to %s, owned by %s", c.Endpoint.URL, s.Name, s.Owner)
			}
		}
		for _, x := range scriptsOf(r) {
			for _, line := range overlooked(x.text) {
				add(x.pos, "script-negation", line+" || exit 1", "what %q finds in the script of %q counts for nothing: sh -e passes over commands behind a !, unless they are its last", line, x.title)
			}
		}
		for _, name := range unbrought(r) {
			add(name.pos, "step-tooling", fmt.Sprintf("tool(%q, ..., kept = ...) in tooling", name.name), "%q is run by the step %q, and no tool brings it", name.name, name.step)
		}
	}
	return found
}

// nobody are owners that are none.
var nobody = []string{"", "?", "-", "nobody", "none", "n/a", "tbd", "todo", "fixme", "unknown", "xxx"}

// ownerOf returns the service and pathway of it that an endpoint is part of.
func ownerOf(f *fleet.Fleet, e *fleet.Endpoint) (*fleet.Service, string) {
	if e == nil {
		return nil, ""
	}
	for _, s := range f.Services {
		for _, p := range s.Pathways {
			for _, x := range p.Endpoints {
				if within(e, &x) {
					return s, p.Name
				}
			}
		}
	}
	return nil, ""
}

// within reports whether all of e is part of x.
func within(e, x *fleet.Endpoint) bool {
	if e.URL == x.URL {
		return true
	}
	if e.Scheme != x.Scheme || e.Host != x.Host || !e.Prefix.IsValid() || !x.Prefix.IsValid() || e.Path != x.Path {
		return false
	}
	return x.Prefix.Bits() <= e.Prefix.Bits() && x.Prefix.Contains(e.Prefix.Addr()) &&
		x.Ports.First <= e.Ports.First && e.Ports.Last <= x.Ports.Last
}

// everywhere are programs that every Debian machine has, beside what a shell
// has itself: those of essential packages.
var everywhere = strings.Fields(`
	: . [ alias bg break cd command continue echo eval exec exit export false fg getopts hash jobs kill local printf pwd
	read readonly return set shift test times trap true type ulimit umask unalias unset wait
	arch awk b2sum base32 base64 basename bash basenc cat chgrp chmod chown chroot cksum cmp comm cp csplit cut dash date dd
	df diff diff3 dir dircolors dirname dmesg dpkg du egrep env expand expr factor fgrep find findmnt flock fmt fold getent
	getopt grep groups gunzip gzip head hostid hostname iconv id install ionice ip ipcrm ipcs join kill ldconfig ldd link ln
	logger login logname losetup ls lsblk lsns mawk md5sum mkdir mkfifo mknod mktemp more mount mountpoint mv nawk nice nl
	nohup nproc nsenter numfmt od paste pathchk perl pidof pinky pivot_root pr printenv prlimit ps ptx readlink realpath
	renice rm rmdir runuser sdiff sed seq setpriv setsid sh sha1sum sha224sum sha256sum sha384sum sha512sum shred shuf sleep
	sort split stat stdbuf stty su sum sync sysctl tabs tac tail tar taskset tee timeout touch tput tr truncate tsort tty
	umount uname unexpand uniq unlink unshare users vdir wc whereis which who whoami xargs yes zcat zcmp zdiff zgrep`)

// titled is a script, and the step or validation that runs it.
type titled struct {
	title, text string
	pos         diag.Pos
}

// scriptsOf returns the scripts of a recipe, those that are the same on several
// machines once.
func scriptsOf(r *fleet.Recipe) (all []titled) {
	add := func(title string, pos diag.Pos, scripts []fleet.Script) {
		for _, s := range scripts {
			if x := (titled{title, s.Text, pos}); !slices.Contains(all, x) {
				all = append(all, x)
			}
		}
	}
	for _, a := range r.Strategy {
		if a.Step != nil {
			add(a.Step.Title, a.Step.Pos, a.Step.Run)
		}
		if a.Validation != nil {
			add(a.Validation.Title, a.Validation.Pos, a.Validation.Run)
		}
	}
	for _, v := range r.Validation {
		add(v.Title, v.Pos, v.Run)
	}
	return all
}

// overlooked returns the commands of a script that look like checks and are none:
// those that a ! turns round are exempt from sh -e (POSIX, 2.8.1 and set -e),
// so that only the last one's status is anybody's.
func overlooked(script string) (lines []string) {
	f, err := syntax.NewParser(syntax.Variant(syntax.LangPOSIX)).Parse(strings.NewReader(script), "")
	if err != nil {
		return nil
	}
	source := func(n syntax.Node) string { return script[n.Pos().Offset():n.End().Offset()] }
	look := func(stmts []*syntax.Stmt) {
		for i, s := range stmts {
			if endsNegated(s) && i+1 < len(stmts) && !strings.Contains(source(stmts[i+1]), "$?") {
				first, _, _ := strings.Cut(strings.TrimRight(strings.TrimSpace(source(s)), ";"), "\n")
				lines = append(lines, first)
			}
		}
	}
	syntax.Walk(f, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.File:
			look(n.Stmts)
		case *syntax.Block:
			look(n.Stmts)
		case *syntax.Subshell:
			look(n.Stmts)
		case *syntax.ForClause:
			look(n.Do)
		case *syntax.WhileClause:
			look(n.Do)
		case *syntax.IfClause:
			look(n.Then)
		case *syntax.CaseItem:
			look(n.Stmts)
		}
		return true
	})
	return lines
}

// endsNegated reports whether the last command of a list of && and || is one
// behind a !.
func endsNegated(s *syntax.Stmt) bool {
	if b, ok := s.Cmd.(*syntax.BinaryCmd); ok && (b.Op == syntax.AndStmt || b.Op == syntax.OrStmt) {
		return endsNegated(b.Y)
	}
	return s.Negated
}

// used is a program that a step runs.
type used struct {
	name, step string
	pos        diag.Pos
}

// unbrought returns the programs that a recipe's steps run by a bare name,
// though no tooling brings them: each once. It says nothing of recipes whose
// machines have more than tools can be seen to bring.
func unbrought(r *fleet.Recipe) []used {
	have := map[string]bool{}
	for _, name := range everywhere {
		have[name] = true
	}
	for _, t := range r.Tools {
		if t.Deb != "" { // a package brings what it likes
			return nil
		}
		have[t.Name] = true
	}
	for _, h := range r.Hardware {
		if h.Image != nil && !h.Image.Host {
			return nil
		}
	}
	for _, f := range r.Files {
		have[path.Base(f.Path)] = true
	}
	var out []used
	for _, a := range r.Strategy {
		if a.Step == nil {
			continue
		}
		for _, script := range a.Step.Run {
			for _, name := range commandsOf(script.Text) {
				if !have[name] {
					have[name] = true
					out = append(out, used{name, a.Step.Title, a.Step.Pos})
				}
			}
		}
	}
	return out
}

// commandsOf returns the names that a script runs, but for its own functions,
// and paths, and what is made while it runs; none if it is no shell script.
func commandsOf(script string) []string {
	f, err := syntax.NewParser(syntax.Variant(syntax.LangPOSIX)).Parse(strings.NewReader(script), "")
	if err != nil {
		return nil
	}
	own := map[string]bool{}
	var names []string
	syntax.Walk(f, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.FuncDecl:
			own[n.Name.Value] = true
		case *syntax.CallExpr:
			args := n.Args
			for len(args) > 1 && slices.Contains([]string{"exec", "nohup", "command", "setsid"}, args[0].Lit()) {
				args = args[1:]
			}
			if len(args) > 0 {
				if name := args[0].Lit(); name != "" && !strings.ContainsAny(name, "/-*?[=") || name == "[" {
					names = append(names, name)
				}
			}
		}
		return true
	})
	return slices.DeleteFunc(names, func(name string) bool { return own[name] })
}
