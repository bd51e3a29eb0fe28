package main

import (
	"strings"
	"testing"

	"bj/fleet"
	"bj/lang/diag"
)

func TestAffected(t *testing.T) {
	f := &fleet.Fleet{
		Services: []*fleet.Service{
			{Name: "names", Pos: diag.Pos{File: "names/names.star"}},
			{Name: "web", Pos: diag.Pos{File: "web/service.star"}},
		},
		Recipes: []*fleet.Recipe{
			{Label: "//names:n", Service: "names", Modules: []string{"names/names.star", "lib/ports.star"}},
			{Label: "//own:o", Service: "own", Modules: []string{"own/own.star"}, Tools: []fleet.Tool{{Go: "./cmd/own"}, {Path: "tools/own"}},
				Files: []fleet.File{{Source: "own/data"}}, Secrets: []fleet.Secret{{Source: "own/secret"}},
				Hardware: []*fleet.Hardware{{Image: &fleet.Image{OCI: "images/own"}}, {}}},
			{Label: "//web:w", Service: "web", Modules: []string{"web/web.star"}, Conditions: []fleet.Condition{{Service: "names"}, {Service: "*"}}},
		},
	}
	for _, c := range []struct{ files, supply, want string }{
		{"", "", ""},
		{"README.md", "", ""},
		{"lib/ports.star", "production", "//names:n"},
		{"lib/ports.star", "recipes", "//names:n //web:w"}, // web stands on what names' recipe brings back
		{"names/names.star", "", "//names:n //web:w"},
		{"web/service.star", "", "//web:w"},
		{"web/web.star own/own.star", "", "//own:o //web:w"},
		{"own/data/a/b", "", "//own:o"},
		{"own/data2", "", ""},
		{"own/secret", "", "//own:o"},
		{"tools/own", "", "//own:o"},
		{"images/own/index.json", "", "//own:o"},
		{"internal/x.go", "", "//own:o"},
		{"go.sum", "", "//own:o"},
		{"bj.star", "", "//names:n //own:o //web:w"},
		{"sub/bj.star", "", ""},
	} {
		var got []string
		for _, r := range affected(f, f.Recipes, strings.Fields(c.files), c.supply) {
			got = append(got, r.Label)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("a change of %q affects %q, want %q", c.files, s, c.want)
		}
	}
}
