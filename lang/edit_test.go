package lang

import (
	"strings"
	"testing"

	"bj/lang/diag"
)

func TestEditCalls(t *testing.T) {
	for name, c := range map[string]struct{ src, want string }{
		"lines": {`recipe(
    conditions = [
        # storage
        allow("a"),  # keep

        # goes
        @allow("b", why = "x"),  # goes as well
        # stays
        allow("c"),
    ],  # all
)
`, `recipe(
    conditions = [
        # storage
        allow("a"),  # keep

        # stays
        allow("c"),
    ],  # all
)
`},
		"one line, first":  {"x = [@allow(\"a\"), allow(\"b\")]\n", "x = [allow(\"b\")]\n"},
		"one line, last":   {"x = [allow(\"a\"), @allow(\"b\")]\n", "x = [allow(\"a\")]\n"},
		"one line, middle": {"x = [allow(\"a\"), @allow(\"b\"), allow(\"c\")]\n", "x = [allow(\"a\"), allow(\"c\")]\n"},
		"one line, all":    {"x = [@allow(\"a\"), @allow(\"b\")]\n", "x = []\n"},
		"spans lines":      {"x = [\n    @allow(\n        \"a\",\n    ),\n    allow(\"b\"),\n]\n", "x = [\n    allow(\"b\"),\n]\n"},
		"all lines":        {"x = [\n    @allow(\"a\"),\n    @allow(\"b\"),\n]\n", "x = [\n]\n"},
		"unformatted":      {"x=[ allow('a') ,@allow('b') ]  # c\n", "x=[ allow('a') ]  # c\n"},
		"replaced":         {"x = [!allow(\"*\")]\n", "x = [\n    one(1),\n    two(2),\n]\n"},
		"replaced, others": {"x = [f(), !allow(\"*\")]\n", "x = [f(), one(1), two(2)]\n"},
		"last of its line": {"x = [\n    f(), @allow(\"b\"),\n    g(),\n]\n", "x = [\n    f(),\n    g(),\n]\n"},
		"replaced, lines":  {"x = [\n    !allow(\"*\"),  # why\n]\n", "x = [\n    one(1),\n    two(2),  # why\n]\n"},
		"missed":           {"A = @allow(\"a\")\n", "A = allow(\"a\")\n"},
	} {
		var edits []CallEdit
		var clean strings.Builder
		line, col := 1, 1
		for _, r := range c.src {
			switch r {
			case '@', '!':
				e := CallEdit{Pos: diag.Pos{File: "x.star", Line: line, Col: col}}
				if r == '!' {
					e.With = []string{"one(1)", "two(2)"}
				}
				if len(edits)%2 == 1 {
					e.Pos.Col += len("allow") // its parenthesis
				}
				edits = append(edits, e)
				continue
			case '\n':
				line, col = line+1, 0
			}
			col++
			clean.WriteRune(r)
		}
		got, missed, err := EditCalls("x.star", []byte(clean.String()), edits)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if string(got) != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, c.want)
		}
		if (len(missed) > 0) != (name == "missed") {
			t.Errorf("%s: missed %v", name, missed)
		}
	}
}
