package graph

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"bj/lang/diag"
)

// Saved is a graph as bj graph --format json writes it, and as other
// repositories and bj graph --diff read it.
type Saved struct {
	Schema   string    `json:"schema"`
	Services []Service `json:"services"`
	Recipes  []Recipe  `json:"recipes"`
	Edges    []Edge    `json:"edges"`
}

// schemaOf names the documents that answer a question.
func schemaOf(question string) string { return "bj.graph." + question + "/1" }

// Saved returns g as it is saved.
func (g *Graph) Saved() *Saved {
	return &Saved{Schema: schemaOf("graph"), Services: g.services, Recipes: g.recipes, Edges: g.Edges()}
}

// ReadSaved reads a saved graph. It ignores unknown fields, and refuses a newer
// schema and names that the graph does not declare.
func ReadSaved(data []byte) (*Saved, error) {
	var s Saved
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("reading a saved graph: %w", err)
	}
	if err := checkSchema(s.Schema, "bj.graph.graph"); err != nil {
		return nil, fmt.Errorf("reading a saved graph: %w", err)
	}
	if _, err := s.Graph(); err != nil {
		return nil, fmt.Errorf("reading a saved graph: %w", err)
	}
	return &s, nil
}

// checkSchema refuses what is not of the kind, or newer than this bj.
func checkSchema(schema, kind string) error {
	name, number, _ := strings.Cut(schema, "/")
	n, err := strconv.Atoi(number)
	switch {
	case schema == "":
		return errors.New("it has no schema; bj graph --format json writes one")
	case name != kind || err != nil || n < 1:
		return fmt.Errorf("it is %q, not %s/1", schema, kind)
	case n > 1:
		return fmt.Errorf("it is %q, of a newer bj: this one reads %s/1", schema, kind)
	}
	return nil
}

// Graph makes a graph of s alone, to be asked like any other.
func (s *Saved) Graph() (*Graph, error) {
	d := newDraft()
	d.addKnown(s)
	d.known = 0
	return d.finish(false)
}

// addKnown adds the services of another repository's graph, with their recipes
// and what those need.
func (d *draft) addKnown(k *Saved) {
	taken := map[string]bool{}
	for _, s := range k.Services {
		if s.Name == "" {
			d.wrong = append(d.wrong, diag.Diagnostic{Severity: diag.Error, Message: "a service without a name"})
			continue
		}
		if len(s.Pathways) == 0 {
			s.Pathways = []string{"default"}
		}
		if !d.addService(s) {
			taken[s.Name] = true
			continue
		}
		d.known++
	}
	type key struct{ label, service string }
	at := map[key]int{}
	for _, r := range k.Recipes {
		if taken[r.Service] {
			continue
		}
		at[key{r.Label, r.Service}] = len(d.recipes)
		x := draftRecipe{Recipe: r}
		d.recipes = append(d.recipes, x)
	}
	for _, e := range k.Edges {
		if taken[e.From] {
			continue
		}
		i, ok := at[key{e.Recipe, e.From}]
		if !ok {
			d.wrong = append(d.wrong, diag.Diagnostic{Severity: diag.Error, Message: fmt.Sprintf("an edge of the recipe %q of %q, which it does not have", e.Recipe, e.From)})
			continue
		}
		x := &d.recipes[i]
		pathways := e.Pathways
		if x.Excluded == ExcludedUnpared {
			continue
		}
		x.needs = append(x.needs, draftNeed{
			to: e.To, pathways: pathways, why: e.Why, effort: max(e.Effort, 0), pos: diag.Pos{File: e.File, Line: e.Line},
			kept: e.Kept, evidence: e.Evidence,
		})
	}
}
