package junit

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// element is what an element of a JUnit report may hold.
type element struct {
	required string // attributes
	optional string
	children []string // in any number and order
}

// schema is that of Jenkins' xunit plugin (junit-10.xsd), as far as a report
// like ours uses it, with the attribute file of test cases, which GitLab and
// pytest add to it.
var schema = map[string]element{
	"testsuites": {"", "name time tests failures disabled errors", []string{"testsuite"}},
	"testsuite": {"name tests", "failures errors time disabled skipped timestamp hostname id package file log url version",
		[]string{"testsuite", "properties", "testcase", "system-out", "system-err"}},
	"testcase": {"name classname", "file time assertions status class line",
		[]string{"skipped", "error", "failure", "system-out", "system-err", "properties", "rerunFailure"}},
	"failure":    {"", "message type", nil},
	"error":      {"", "message type", nil},
	"skipped":    {"", "message type", nil},
	"system-out": {},
}

// kinds are what the values of attributes look like.
var kinds = map[string]*regexp.Regexp{
	"tests": count, "failures": count, "errors": count, "skipped": count,
	"time":      regexp.MustCompile(`^[0-9]+(\.[0-9]+)?$`),
	"timestamp": regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)?$`),
	"name":      regexp.MustCompile(`.`), "classname": regexp.MustCompile(`.`),
	"file": regexp.MustCompile(`^[^/].*\.star$`), // relative to the repository, or no tool finds it
}

var count = regexp.MustCompile(`^[0-9]+$`)

// TestSchema holds the report of TestReport to the schema.
func TestSchema(t *testing.T) {
	data, err := os.ReadFile("testdata/report.xml")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(data, []byte(xml.Header)) {
		t.Error("the report does not say that it is XML in UTF-8")
	}
	var open []string
	seen := map[string]int{}
	for d := xml.NewDecoder(bytes.NewReader(data)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			name := token.Name.Local
			rule, ok := schema[name]
			if !ok {
				t.Fatalf("the schema has no element %s", name)
			}
			switch {
			case len(open) == 0 && name != "testsuites":
				t.Errorf("the root is %s", name)
			case len(open) > 0 && !slices.Contains(schema[open[len(open)-1]].children, name):
				t.Errorf("%s is in %s", name, open[len(open)-1])
			}
			var have []string
			for _, a := range token.Attr {
				have = append(have, a.Name.Local)
				if !slices.Contains(strings.Fields(rule.required+" "+rule.optional), a.Name.Local) {
					t.Errorf("%s has an attribute %s", name, a.Name.Local)
				}
				if k := kinds[a.Name.Local]; k != nil && !k.MatchString(a.Value) {
					t.Errorf("%s has %s=%q", name, a.Name.Local, a.Value)
				}
			}
			for _, want := range strings.Fields(rule.required) {
				if !slices.Contains(have, want) {
					t.Errorf("%s has no attribute %s", name, want)
				}
			}
			open = append(open, name)
			seen[name]++
		case xml.EndElement:
			open = open[:len(open)-1]
		case xml.CharData:
			if len(bytes.TrimSpace(token)) > 0 && schema[open[len(open)-1]].children != nil {
				t.Errorf("%s holds text: %q", open[len(open)-1], token)
			}
		}
	}
	for _, name := range []string{"testsuites", "testsuite", "testcase", "failure", "error", "system-out"} {
		if seen[name] == 0 {
			t.Errorf("the report has no %s, so nothing was looked at", name)
		}
	}
}
