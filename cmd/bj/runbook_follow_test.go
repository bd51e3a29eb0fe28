package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	east "github.com/yuin/goldmark/extension/ast"
	"github.com/yuin/goldmark/text"

	"bj/fleet"
	"bj/sandbox"
	"bj/sandbox/image"
)

// TestFollowRunbook does by hand what pages say: it reads the Markdown, and
// nothing of the recipes, leases bare machines that have the names and addresses
// of hosts.csv, and pastes the commands into a plain shell, in order. Where a
// page needs another service, that one's page comes first. What is in the safe
// is known to who follows the page.
func TestFollowRunbook(t *testing.T) {
	key, err := os.ReadFile(filepath.Join("..", "..", "recipes", "certificates", "rehearsal-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	safe := strings.NewReplacer("PASTE THE VALUE OF ISSUE_KEY HERE", "00112233445566778899aabbccddeeff", "PASTE THE VALUE OF CA_KEY HERE", strings.TrimSpace(string(key)))
	for _, c := range []struct {
		name   string
		labels []string
		hosts  string
	}{
		{"names", []string{"//recipes/names:cold_start"}, "machine,name,address\nnames-0,dns-a,172.20.7.5\nnames-1,dns-b,172.20.7.6\n"},
		{"bus", []string{"//recipes/certificates:cold_start", "//recipes/bus:cold_start"}, "machine,name,address,address6\n" +
			"bus-0,rack4-u1,172.20.7.61,fd00:7::61\nbus-1,rack5-u1,172.20.7.62,fd00:7::62\nbus-2,rack6-u1,172.20.7.63,fd00:7::63\ncertificates,ca-1,172.20.7.41,fd00:7::41\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			all := &hand{T: t, safe: safe}
			var pages []*hand
			for _, label := range c.labels {
				h := readPage(t, pageOf(t, label, c.hosts))
				all.machines, all.ports = append(all.machines, h.machines...), append(all.ports, h.ports...)
				for _, tool := range h.tools {
					if !slices.ContainsFunc(all.tools, func(x fleet.Tool) bool { return x.Name == tool.Name }) {
						all.tools = append(all.tools, tool)
					}
				}
				pages = append(pages, h)
			}
			all.lease(ctx)
			for _, h := range pages {
				h.env, h.safe = all.env, safe
				h.follow(ctx)
			}
		})
	}
}

// pageOf returns a page with an operator's machines filled in.
func pageOf(t *testing.T, label, hosts string) []byte {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "hosts.csv")
	if err := os.WriteFile(file, []byte(hosts), 0o644); err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	e := newEnv()
	e.dir, e.stdout = root, &pipe{w: &out}
	if err := execute(t.Context(), e, []string{"runbook", label, "--machines", file, "--results", dir}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// hand is somebody who follows a page.
type hand struct {
	*testing.T
	source   []byte
	machines []sandbox.MachineSpec
	tools    []fleet.Tool
	ports    []fleet.Ports
	blocks   []pageBlock
	env      sandbox.Environment
	safe     *strings.Replacer
}

// pageBlock is a paragraph or a block of commands.
type pageBlock struct {
	section string // "6. Steps"
	heading string // the nearest
	words   string // of a paragraph
	spans   []string
	command string // of a block
}

func (h *hand) text(n ast.Node) (words string, spans []string) {
	var b strings.Builder
	_ = ast.Walk(n, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		switch n := n.(type) {
		case *ast.CodeSpan:
			var span strings.Builder
			for c := n.FirstChild(); c != nil; c = c.NextSibling() {
				span.Write(c.(*ast.Text).Segment.Value(h.source))
			}
			spans = append(spans, span.String())
			b.WriteString(span.String())
			return ast.WalkSkipChildren, nil
		case *ast.Text:
			b.Write(n.Segment.Value(h.source))
			if n.SoftLineBreak() {
				b.WriteByte(' ')
			}
		case *ast.String:
			b.Write(n.Value)
		}
		return ast.WalkContinue, nil
	})
	return b.String(), spans
}

// readPage takes a page apart.
func readPage(t *testing.T, source []byte) *hand {
	t.Helper()
	h := &hand{T: t, source: source}
	doc := goldmark.New(goldmark.WithExtensions(extension.Table)).Parser().Parse(text.NewReader(source))
	section, heading := "", ""
	for n := doc.FirstChild(); n != nil; n = n.NextSibling() {
		words, spans := h.text(n)
		switch n := n.(type) {
		case *ast.Heading:
			if heading = words; n.Level == 2 {
				section = words
			}
		case *ast.FencedCodeBlock:
			if string(n.Language(source)) == "sh" {
				h.blocks = append(h.blocks, pageBlock{section: section, heading: heading, command: string(n.Lines().Value(source))})
			}
		case *east.Table:
			for row := n.FirstChild().NextSibling(); row != nil; row = row.NextSibling() {
				var cells []string
				for c := row.FirstChild(); c != nil; c = c.NextSibling() {
					cell, _ := h.text(c)
					cells = append(cells, cell)
				}
				switch section {
				case "4. Machines":
					h.machines = append(h.machines, sandbox.MachineSpec{Name: cells[1], CPUs: 1, Memory: 256 << 20, Disk: 1 << 30,
						V4: netip.MustParseAddr(cells[2]), V6: netip.MustParseAddr(cells[3])})
				case "5. Tools, files, secrets":
					name, _, _ := strings.Cut(cells[0], ",")
					h.tools = append(h.tools, fleet.Tool{Name: name, Go: strings.TrimPrefix(cells[1], "go ")})
				}
			}
		default:
			if strings.HasPrefix(words, "The service listens on ") {
				for _, s := range spans {
					p, err := fleet.ParsePorts(s)
					if err != nil {
						t.Fatal(err)
					}
					h.ports = append(h.ports, p)
				}
			}
			h.blocks = append(h.blocks, pageBlock{section: section, heading: heading, words: words, spans: spans})
		}
	}
	if len(h.machines) == 0 || len(h.tools) == 0 || len(h.ports) == 0 {
		t.Fatalf("the page has %d machines, %d tools and %d ports:\n%s", len(h.machines), len(h.tools), len(h.ports), source)
	}
	return h
}

// lease makes the machines, with the tools and nothing else.
func (h *hand) lease(ctx context.Context) {
	h.Helper()
	cache := os.Getenv("BJ_CACHE")
	if cache == "" {
		cache = h.TempDir()
	}
	store := &image.Store{Dir: filepath.Join(cache, "tools"), Workspace: filepath.Join("..", "..")}
	provider, err := newProvider(ctx, defaultSandbox, "the test", cache, store, func(s string) { h.Log(s) })
	if err != nil {
		h.Fatal(err)
	}
	if err := provider.Check(ctx); err != nil {
		h.Skipf("no machine can be had here: %v", err)
	}
	files, err := store.Stage(ctx, h.tools, nil, func(s string) { h.Log(s) })
	if err != nil {
		h.Fatal(err)
	}
	policy := sandbox.Policy{Internal: h.ports}
	for i := range h.machines {
		h.machines[i].Files = files
	}
	h.env, err = provider.Lease(ctx, sandbox.Spec{Owner: h.Name(), Deadline: time.Now().Add(20 * time.Minute), Machines: h.machines, Policy: policy})
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := h.env.Release(ctx); err != nil {
			h.Error(err)
		}
	})
	if err := h.env.Seal(ctx, policy); err != nil {
		h.Fatal(err)
	}
}

// paste runs commands in a plain shell on one machine.
func (h *hand) paste(ctx context.Context, machine, commands string) (string, int) {
	h.Helper()
	i := slices.IndexFunc(h.env.Machines(), func(m sandbox.Machine) bool { return m.Name() == machine })
	if i < 0 {
		h.Fatalf("the page says to paste on %q, which is no machine", machine)
	}
	var mu sync.Mutex
	var out bytes.Buffer
	p, err := h.env.Machines()[i].Start(ctx, sandbox.Command{Argv: []string{"/bin/sh", "-c", h.safe.Replace(commands)}, Unit: "hand"}, func(_ sandbox.Stream, b []byte) {
		mu.Lock()
		defer mu.Unlock()
		out.Write(b)
	})
	if err != nil {
		h.Fatal(err)
	}
	exit, err := p.Wait(ctx)
	if err != nil {
		h.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	return out.String(), exit.Code
}

// follow pastes everything, in order, and does what the words around say.
func (h *hand) follow(ctx context.Context) {
	h.Helper()
	type pasted struct{ machine, command, output string }
	var on []string     // what the last paragraph said
	var recent []pasted // under this heading
	heading, validated := "", 0
	for _, b := range h.blocks {
		if b.heading != heading {
			heading, recent = b.heading, nil
		}
		switch {
		case b.section < "4" || b.section > "8":
		case b.command != "":
			for _, m := range on {
				out, code := h.paste(ctx, m, b.command)
				recent = append(recent, pasted{m, b.command, out})
				if code != 0 && !strings.HasPrefix(b.section, "7") {
					h.Fatalf("%s: on %s, these commands end with %d:\n%s%s", b.heading, m, code, b.command, out)
				}
			}
		case strings.HasPrefix(b.words, "On each machine"), strings.Contains(b.words, ". On each machine, paste this"):
			on = nil
			for _, m := range h.machines {
				on = append(on, m.Name)
			}
		case strings.HasPrefix(b.words, "On "):
			on = nil
			for _, s := range b.spans {
				if slices.ContainsFunc(h.machines, func(m sandbox.MachineSpec) bool { return m.Name == s }) {
					on = append(on, s)
				}
			}
		case strings.HasPrefix(b.words, "It keeps running. It is up when"):
			for _, r := range recent {
				h.until(ctx, r.machine, "cat "+b.spans[0], 0, regexp.MustCompile(b.spans[1]))
			}
		case strings.HasPrefix(b.words, "It worked if"):
			for _, r := range recent {
				if !regexp.MustCompile(b.spans[0]).MatchString(r.output) {
					h.Fatalf("%s: on %s it printed no %q, but\n%s", b.heading, r.machine, b.spans[0], r.output)
				}
			}
		case strings.HasPrefix(b.words, "Expected: exit code "):
			var exit int
			if _, err := fmt.Sscanf(b.words, "Expected: exit code %d, and output that matches", &exit); err != nil {
				h.Fatalf("%s: %v", b.words, err)
			}
			for _, r := range recent {
				h.until(ctx, r.machine, r.command, exit, regexp.MustCompile(b.spans[0]))
				validated++
			}
		}
	}
	if validated == 0 {
		h.Fatal("nothing was validated")
	}
}

// until repeats a command until it succeeds and its output matches.
func (h *hand) until(ctx context.Context, machine, command string, exit int, want *regexp.Regexp) {
	h.Helper()
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	for {
		out, code := h.paste(context.WithoutCancel(ctx), machine, command)
		if code == exit && want.MatchString(out) {
			return
		}
		select {
		case <-ctx.Done():
			h.Fatalf("on %s, this ends with %d, and prints no %q:\n%s\n%s", machine, code, want, command, out)
		case <-time.After(500 * time.Millisecond):
		}
	}
}
