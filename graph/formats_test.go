package graph

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"bj/fleet"
	"bj/lang/diag"
)

// hard has names and words that formats have to quote.
func hard(t *testing.T) *Graph {
	f := plant("a+b@c.d_e-f\nend\ngraph\nr1: a+b@c.d_e-f < end graph\nr2: end < a+b@c.d_e-f\nr3: graph\nr4: end\nr5: graph < graph")
	f.Recipes[0].Conditions[0].Why = "\"quoted\" \\ [brackets] {}|<b>#1;\nnext & `tick` é"
	f.Recipes[0].Conditions[1].Pos = diag.Pos{File: "p/ü 100%#.star", Line: 3}
	e, err := fleet.ParseEndpoint(`http://x.example/"q";{}[]<>|%22`)
	if err != nil {
		t.Fatal(err)
	}
	f.Recipes[0].Conditions = append(f.Recipes[0].Conditions, fleet.Condition{Endpoint: &e, Effort: 1, Pos: diag.Pos{File: "p/p.star", Line: 1}})
	return newGraph(t, f, Options{})
}

// views are drawings of every kind of answer.
func views(t *testing.T) []*View {
	g := hard(t)
	s := newGraph(t, plant("x\ny\nz\nr1: x < y\nr2: y < x\nr3: z < x"), Options{})
	return []*View{g.View(), g.Cycles().View(g), g.Cuts(0).View(g), g.Outage(OutageOptions{All: true}).View(g), g.Impact(0).View(g), g.Why(0, 1).View(g), s.View(), s.Cycles().View(s), s.Cuts(0).View(s), {}}
}

func TestDOT(t *testing.T) {
	dot, err := exec.LookPath("dot")
	if err != nil {
		t.Skipf("Graphviz is not installed: %v", err)
	}
	for _, v := range views(t) {
		var out bytes.Buffer
		if err := v.WriteDOT(&out); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), dot, "-Tjson")
		cmd.Stdin = bytes.NewReader(out.Bytes())
		got, err := cmd.Output()
		if err != nil {
			t.Fatalf("dot: %v\n%s", err, &out)
		}
		var back struct {
			Objects []struct{ Name string }
			Edges   []any
		}
		if err := json.Unmarshal(got, &back); err != nil {
			t.Fatal(err)
		}
		for i, o := range back.Objects {
			if o.Name != strings.ReplaceAll(v.Services[i], `\`, `\\`) {
				t.Errorf("dot reads %q, want %q", o.Name, v.Services[i])
			}
		}
		if len(back.Objects) != len(v.Services) || len(back.Edges) != len(v.folded()) {
			t.Errorf("dot reads %d nodes, %d edges, want %d, %d", len(back.Objects), len(back.Edges), len(v.Services), len(v.folded()))
		}
	}
}

// mermaidParser parses, with Mermaid's own parser, what it gets.
const mermaidParser = `
import { JSDOM } from 'jsdom';
import fs from 'fs';
const dom = new JSDOM('');
globalThis.window = dom.window; globalThis.document = dom.window.document;
const mermaid = (await import('mermaid')).default;
for (const text of JSON.parse(fs.readFileSync(0, 'utf8'))) {
  const got = await mermaid.parse(text);
  if (got.diagramType !== 'flowchart-v2') throw new Error('it is ' + got.diagramType);
}
let refused = false;
try { await mermaid.parse('flowchart RL\n a['); } catch { refused = true; }
console.log(refused ? 'parsed' : 'takes anything');
`

func TestMermaid(t *testing.T) {
	for _, p := range []string{"node", "npm"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("Mermaid's parser needs %s: %v", p, err)
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skipf("there is no folder for Mermaid's parser: %v", err)
	}
	dir := filepath.Join(cache, "bj-test", "mermaid-12.3.0")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "mermaid")); err != nil {
		npm := exec.CommandContext(ctx, "npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", dir, "mermaid@12.3.0", "jsdom@26")
		if out, err := npm.CombinedOutput(); err != nil {
			t.Skipf("Mermaid's parser cannot be installed: %v: %s", err, out)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "parse.mjs"), []byte(mermaidParser), 0o644); err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, v := range views(t) {
		var out strings.Builder
		if err := v.WriteMermaid(&out); err != nil {
			t.Fatal(err)
		}
		texts = append(texts, out.String())
	}
	node := exec.CommandContext(ctx, "node", filepath.Join(dir, "parse.mjs"))
	node.Stdin = strings.NewReader(asJSON(texts))
	if out, err := node.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "parsed" {
		t.Errorf("%v: %s\n%s", err, out, strings.Join(texts, "\n"))
	}
}

// TestSARIF validates logs against the schema of SARIF 2.1.0, as OASIS
// published it.
func TestSARIF(t *testing.T) {
	c := jsonschema.NewCompiler()
	file, err := os.Open("testdata/sarif-schema-2.1.0.json")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	schema, err := jsonschema.UnmarshalJSON(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AddResource("sarif.json", schema); err != nil {
		t.Fatal(err)
	}
	valid, err := c.Compile("sarif.json")
	if err != nil {
		t.Fatal(err)
	}
	cycles := hard(t).Cycles()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	waived := newGraph(t, plant("x\ny\nz\nr1: x < y\nr2: y < x\nr3: z < z"), Options{}).Cycles()
	waived.Waive([]fleet.Waiver{{Services: []string{"x", "y"}, Owner: "o", Reason: "r", Expires: "2026-01-01"}}, now)
	for _, c := range []*Cycles{cycles, waived, {}} {
		var out bytes.Buffer
		if err := c.WriteSARIF(&out, "0.1"); err != nil {
			t.Fatal(err)
		}
		log, err := jsonschema.UnmarshalJSON(bytes.NewReader(out.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		if err := valid.Validate(log); err != nil {
			t.Errorf("%v\n%s", err, &out)
		}
	}
	a, b := waived.Cycles[0].sarif(), waived.Cycles[1].sarif()
	if a.Suppressions == nil == (b.Suppressions == nil) || a.Fingerprints["bjCycle/v1"] == b.Fingerprints["bjCycle/v1"] {
		t.Errorf("%+v\n%+v", a, b)
	}
	if err := valid.Validate(map[string]any{"version": "2.1.0"}); err == nil {
		t.Error("the schema takes anything")
	}
}
