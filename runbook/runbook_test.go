package runbook

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"html"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"bj/fleet"
	"bj/run/event"
)

func pageFor(t *testing.T, b *Book, i int) string {
	t.Helper()
	p, err := b.Page(b.Fleet.Recipes[i])
	if err != nil {
		t.Fatal(err)
	}
	return string(p.Markdown)
}

// TestNoSecret looks for a secret in all that can be written, plain and in every
// encoding that is used on the way.
func TestNoSecret(t *testing.T) {
	f := sample()
	b := book(t, f, "", proven(f, 1))
	p, err := b.Page(f.Recipes[0])
	if err != nil {
		t.Fatal(err)
	}
	page, err := HTML(p)
	if err != nil {
		t.Fatal(err)
	}
	start, err := b.BlackStart(everywhere)
	if err != nil {
		t.Fatal(err)
	}
	index, entries, err := b.Index(f.Recipes)
	if err != nil {
		t.Fatal(err)
	}
	site, err := IndexHTML(index, entries, "<svg></svg>")
	if err != nil {
		t.Fatal(err)
	}
	asJSON, _ := json.Marshal(secret)
	forms := []string{secret, escape(secret), html.EscapeString(secret), url.QueryEscape(secret), url.PathEscape(secret), hex.EncodeToString([]byte(secret)), string(asJSON[1 : len(asJSON)-1]), quote(secret), "s*ecret", `s\*ecret`}
	for _, whole := range []string{string(p.Markdown), string(page), string(start.Markdown), string(site)} {
		for _, form := range forms {
			if strings.Contains(whole, form) {
				t.Errorf("a page has the secret as %q", form)
			}
		}
		for _, block := range regexp.MustCompile(`(?m)^[A-Za-z0-9+/\n]{8,}={0,2}$`).FindAllString(whole, -1) {
			if data, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(block, "\n", "")); err == nil && bytes.Contains(data, []byte("ecret")) {
				t.Errorf("a page has the secret in base64: %q", data)
			}
		}
	}
}

// TestHostile holds that text of others stays text.
func TestHostile(t *testing.T) {
	f := sample()
	p, err := book(t, f, "", proven(f, 1)).Page(f.Recipes[0])
	if err != nil {
		t.Fatal(err)
	}
	if i := bytes.IndexFunc(p.Markdown, func(r rune) bool {
		return r < 0x20 && r != '\n' && r != '\t' || r == 0x202e || r == 0x200b || r == 0x7f
	}); i >= 0 {
		t.Errorf("the Markdown has a control character: %q", p.Markdown[max(0, i-40):i+10])
	}
	page, err := HTML(p)
	if err != nil {
		t.Fatal(err)
	}
	tags := map[string]bool{}
	for _, m := range regexp.MustCompile(`<([a-z0-9]+)`).FindAllSubmatch(page, -1) {
		tags[string(m[1])] = true
	}
	for _, tag := range []string{"img", "i", "b"} {
		if tags[tag] {
			t.Errorf("a recipe made an element %s", tag)
		}
	}
	if n := bytes.Count(page, []byte("<script")); n != 1 {
		t.Errorf("the page has %d scripts", n)
	}
	if bytes.Contains(page, []byte("href=\"javascript:")) {
		t.Error("the page has a link that is a script")
	}
	sections := regexp.MustCompile(`<h2[^>]*>(\d)\. `).FindAllSubmatch(page, -1)
	if len(sections) != 9 {
		t.Errorf("the page has %d sections, not 9", len(sections))
	}
}

// TestStamps is what runs say of a recipe.
func TestStamps(t *testing.T) {
	f := sample()
	good := proven(f, 1)
	failed := good
	failed.Verdict = event.Verdict{Verdict: event.NotRecovered, Reason: "it died", Failed: &event.Failed{Kind: "step", Title: "Serve", Machine: "db-1"}}
	failed.Start, failed.End = good.Start.Add(time.Hour), good.End.Add(time.Hour)
	vacuous, word := failed, "vacuous"
	vacuous.Verdict = event.Verdict{Verdict: event.Errored, Code: &word, Reason: "it holds on nothing"}
	candidate := failed
	candidate.Given = []string{"db"}
	broken := failed
	broken.Verdict = event.Verdict{Verdict: event.Errored, Reason: "no machine"}
	slow := proven(f, 9)
	for _, c := range []struct {
		name    string
		records []event.Record
		change  bool
		want    []string
	}{
		{"never", nil, false, []string{"**Never run**."}},
		{"proven", []event.Record{good}, false, []string{"**Proven except step 4** on 2026-05-06 07:09 UTC.", "It took 1s (median) and 1s (longest) in 1 run."}},
		{"median", []event.Record{good, slow, slow}, false, []string{"It took 9s (median) and 9s (longest) in 3 runs. Limit: 1m."}},
		{"failed", []event.Record{good, failed}, false, []string{"**Not proven since 2026-05-06 07:09 UTC**, step 3 fails on `db-1`.", "it died", "at 10.0.0.1"}},
		{"only failed", []event.Record{failed}, false, []string{"**Not proven**, step 3 fails on `db-1`."}},
		{"error", []event.Record{good, broken}, false, []string{"**Proven except step 4** on", "which says nothing of the recipe: no machine"}},
		{"vacuous", []event.Record{good, vacuous}, false, []string{"**Not proven since 2026-05-06 07:09 UTC**, a validation holds on empty machines too, and proves nothing.", "it holds on nothing"}},
		{"another program", []event.Record{good, candidate}, false, []string{"**Proven except step 4** on 2026-05-06 07:09 UTC."}},
		{"changed", []event.Record{good}, true, []string{"**The recipe has changed since its proof**"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := sample()
			if c.change {
				f.Recipes[0].Strategy[0].Step.Run[0].Text = "echo other"
			}
			b := book(t, f, "", c.records...)
			page := pageFor(t, b, 0)
			for _, want := range c.want {
				if !strings.Contains(page, want) {
					t.Errorf("the page does not say %q:\n%s", want, page[:1500])
				}
			}
			if page != pageFor(t, b, 0) {
				t.Error("the same input gave other bytes")
			}
			above, below, _ := strings.Cut(page, sumLine)
			sum := sha256.Sum256([]byte(above))
			if strings.Trim(below, "`\n") != hex.EncodeToString(sum[:]) {
				t.Error("the page's SHA-256 is not its own")
			}
		})
	}
}

// TestMachines fills in machines, two of which change places.
func TestMachines(t *testing.T) {
	f := sample()
	page := pageFor(t, book(t, f, "machine,name,address\ndb-0,left,10.0.0.11\ndb-1,right,10.0.0.1\nstore,shelf,172.16.0.9\n"), 0)
	for _, want := range []string{
		"listen 10.0.0.11, not 10.0.0.1 or 110.0.0.1 or 10.0.0.12", "exec db --peer 10.0.0.1\n", `10\.0\.0\.11 ok`, "On each of `left`, `right`", "10.0.0.11 left db-0", "`shelf`",
	} {
		if want == "On each of `left`, `right`" {
			want = "On each of `left` and `right`"
		}
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	for _, bad := range []string{"", "name\nx\n", "machine,adress\nx,1\n", "machine,address\ndb-0,x\n", "machine,address\n,10.0.0.1\n", "machine,name\ndb-0,a b\n", "machine\ndb-0\ndb-0\n", "machine,address\ndb-0,fd00::1%eth0\n"} {
		if _, err := ReadMachines([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a list of machines", bad)
		}
	}
}

// TestHide holds that secrets are hidden where lines are joined, where one is a
// part of another, and that a short one does not hide half of the page.
func TestHide(t *testing.T) {
	f := &fleet.Fleet{Recipes: []*fleet.Recipe{{Label: "//p:r", Secrets: []fleet.Secret{
		{Name: "A", Value: "correct horse"}, {Name: "B", Value: "horse battery staple"}, {Name: "C", Value: "4v1"}, {Name: "D", Value: "*"}, {Name: "E", Source: "key"},
	}}}}
	b := &Book{Options: Options{Fleet: f}, secrets: newSecrets(f, func(string) ([]byte, error) { return []byte("BEGIN\nfirst line\n\nlast line\n"), nil })}
	k, err := b.newInk(f.Recipes[0])
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"it is correct\nhorse": "it is ***", "horse battery staple": "***", "pin 4v1, 4v1 4v1.": "pin ***, *** ***.", "84v1 4v12": "84v1 4v12", "a * b": "a * b",
		"correct\x1b[1m horse": "***", "first line of last lines": "*** of ***s",
	} {
		if got := k.line(text); got != want {
			t.Errorf("%q became %q, not %q", text, got, want)
		}
	}
}

// TestPut runs what is pasted, in a real shell, and compares the files.
func TestPut(t *testing.T) {
	for _, content := range []string{"", "\n", "a", "a\n", "END\n", "x\nEND\nEND2\n", "$HOME `id` \\ 'q' \"!!\"\n", "\x00\xff\n", "tab\there\n", strings.Repeat("long ", 1000), "\x1b[31m", "crlf\r\n", "ü\u202e", "-n\n"} {
		name := filepath.Join(t.TempDir(), "a folder", "it's $x")
		for _, shell := range []string{"sh", "bash"} {
			out, err := exec.CommandContext(t.Context(), shell, "-c", file(name, content, 0o640)+"cat "+quote(name)).CombinedOutput()
			if err != nil || string(out) != content {
				t.Errorf("%s made %q of %q (%v)", shell, out, content, err)
			}
		}
	}
}

// FuzzEscape holds that no text becomes markup.
func FuzzEscape(f *testing.F) {
	f.Add(hostile)
	f.Add("- item\n# heading\n<script>\n[x](javascript:y)\n**bold**\n\nand\n- a\n---\n===\n")
	f.Add("a | b \\| c \\\\| d ` | `` \\")
	f.Add("1. a\n2) b\n+ c\n= d\n: e\n_x_ __y__ *z*")
	f.Fuzz(func(t *testing.T, s string) {
		line := strings.Join(strings.Fields(clean(s)), " ")
		k := &ink{machines: &renaming{}}
		row := "| " + cell(escape(line)) + " | " + cell(code(line)) + " | " + cell(inline(line)) + " |\n"
		out, err := render([]byte("x " + escape(line) + " " + code(line) + "\n\n" + escape(line) + "\n\n" + k.prose(s) + "| a | b | c |\n| --- | --- | --- |\n" + row))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`<(/?[a-zA-Z!?][a-z0-9]*)`).FindAllStringSubmatch(out, -1) {
			switch strings.Trim(m[1], "/") {
			case "p", "code", "ul", "li", "div", "table", "thead", "tbody", "tr", "th", "td":
			default:
				t.Fatalf("%q became %q", s, out)
			}
		}
		if n := strings.Count(out, "<td "); n != 3 {
			t.Fatalf("%q makes %d cells: %s", s, n, out)
		}
	})
}

// TestTerminal holds that no line but those of commands and outputs is wider
// than the terminal, and that a table keeps all it says.
func TestTerminal(t *testing.T) {
	var b bytes.Buffer
	if err := Terminal(&b, []byte("# A *title\n\nwords and more words that go on\n\n| a | b |\n| --- | --- |\n| one thing | x\\|y |\n\n```sh\necho '| # keep this as it is'\n```\n"), 20, false); err != nil {
		t.Fatal(err)
	}
	if want := "A *title\n\nwords and more words\nthat go on\n\n- a: one thing\n  b: x|y\n\necho '| # keep this as it is'\n"; b.String() != want {
		t.Errorf("it prints %q, not %q", b.String(), want)
	}
}
