package runbook

import (
	"encoding/base64"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// home is where pasted commands keep scripts, logs and values.
const home = "/var/lib/runbook"

// command is one script as an operator pastes it: into a file first, so that it
// runs in a fresh shell, as it did when it was proven, and can be run again.
type command struct {
	name   string // of the script: "step-2"
	script string
	user   string
	env    map[string]string
	values []string // names of secrets and captures; each is in a file of that name
	// Of a step:
	daemon, restart bool
	unit            string
	retry           int
	capture         string
	masked          bool
}

// values that need no quotes in a shell.
var bare = regexp.MustCompile(`^[A-Za-z0-9_./@%+=:,-]+$`)

// quote writes a word of a shell.
func quote(s string) string {
	if bare.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// log is where a daemon writes.
func (c *command) log() string { return home + "/" + c.unit + ".log" }

// text is what is pasted.
func (c *command) text() string {
	file := home + "/" + c.name + ".sh"
	var b strings.Builder
	fmt.Fprintf(&b, "mkdir -p %s\n", home)
	b.WriteString(put(file, c.preamble()+strings.TrimRight(c.script, "\n")+"\n"))
	run := "sh -e " + file
	if c.other() {
		run = "runuser -u " + c.user + " -- " + run
	}
	enter := "cd /root"
	if c.daemon {
		enter = "export HOME=/root; cd /root" // a service of systemd has no home
	}
	for _, v := range c.values {
		enter = fmt.Sprintf("%s=\"$(cat %s/%s)\"; export %s; ", v, home, v, v) + enter
	}
	if !c.daemon {
		c.foreground(&b, enter, run)
		return b.String()
	}
	again := ""
	forever := "exec " + run
	if c.restart {
		again = "-p Restart=always -p RestartSec=1 "
		forever = "while :; do " + run + "; sleep 1; done"
	}
	fmt.Fprintf(&b, `: >%[1]s
if [ -d /run/systemd/system ]; then
  systemd-run --unit=%[2]s %[3]ssh -c '%[4]s; exec %[5]s >>%[1]s 2>&1'
else
  setsid sh -c '%[4]s; %[6]s' </dev/null >>%[1]s 2>&1 &
fi
`, c.log(), c.unit, again, enter, run, forever)
	return b.String()
}

// foreground runs the script once, or until it works.
func (c *command) foreground(b *strings.Builder, enter, run string) {
	kept := home + "/" + c.capture
	if c.capture != "" {
		run += " >" + kept
	}
	if c.retry > 0 {
		run = fmt.Sprintf("n=0; until %s; do n=$((n+1)); [ $n -le %d ] || exit 1; sleep 1; done", run, c.retry)
	}
	sep := " && "
	if c.retry > 0 {
		sep = "; "
	}
	if c.masked {
		enter = "umask 077; " + enter
	}
	fmt.Fprintf(b, "(%s%s%s) </dev/null", enter, sep, run)
	if c.capture != "" && !c.masked {
		fmt.Fprintf(b, " && cat %s", kept)
	}
	b.WriteString("\n")
}

// other reports whether the script runs as somebody else than root.
func (c *command) other() bool { return c.user != "" && c.user != "root" }

// preamble are the script's first lines.
func (c *command) preamble() string {
	var b strings.Builder
	if c.other() {
		fmt.Fprintf(&b, "cd ~%[1]s\nexport HOME=\"$PWD\" USER=%[1]s LOGNAME=%[1]s\n", c.user)
	}
	for _, k := range slices.Sorted(maps.Keys(c.env)) {
		fmt.Fprintf(&b, "export %s=%s\n", k, quote(c.env[k]))
	}
	return b.String()
}

// put writes a command that makes a file of exactly that content: by a
// here-document where content is text that survives pasting, else in base64.
func put(file, content string) string {
	to := quote(file)
	if content == "" {
		return ": >" + to + "\n"
	}
	program, body := "cat", content
	switch {
	case !pasteable(content):
		program, body = "base64 -d", lines64(content)
	case !strings.HasSuffix(content, "\n"):
		program, body = fmt.Sprintf("head -c %d", len(content)), content+"\n"
	}
	end := "END"
	for n := 2; strings.Contains("\n"+body, "\n"+end+"\n"); n++ {
		end = fmt.Sprintf("END%d", n)
	}
	return fmt.Sprintf("%s >%s <<'%s'\n%s%s\n", program, to, end, body, end)
}

// lines64 is base64 in lines.
func lines64(s string) string {
	text := base64.StdEncoding.EncodeToString([]byte(s))
	var b strings.Builder
	for part := range slices.Chunk([]byte(text), 76) {
		b.Write(part)
		b.WriteByte('\n')
	}
	return b.String()
}

// file writes a command that makes a file of a recipe, with its folder and mode.
func file(name, content string, mode uint32) string {
	return fmt.Sprintf("mkdir -p %s\n%schmod %04o %s\n", quote(path.Dir(name)), put(name, content), mode, quote(name))
}
