package graph

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// pageDeadline bounds one test of a page, on a busy machine.
const pageDeadline = 2 * time.Minute

// startBrowser starts a Chromium of its own for a test, without any network, or
// skips the test.
func startBrowser(t testing.TB) context.Context {
	t.Helper()
	var program string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			program = found
			break
		}
	}
	if program == "" {
		t.Skip("no Chromium on PATH: make test installs Debian's package chromium")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(profile(t)), chromedp.WindowSize(1400, 900),
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND"), chromedp.WSURLReadTimeout(time.Minute))
	ctx, stop := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(stop)
	quiet := func(string, ...any) {} // events of a newer Chromium than the library knows
	ctx, close := chromedp.NewContext(ctx, chromedp.WithErrorf(quiet), chromedp.WithLogf(quiet))
	t.Cleanup(close)
	if err := chromedp.Run(ctx); err != nil {
		t.Fatalf("starting Chromium: %v", err)
	}
	return ctx
}

// profile returns a folder for a browser's own files. Some of its processes end,
// and write there, a little later than itself.
func profile(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bj-browser-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		deadline := time.Now().Add(10 * time.Second)
		for err := os.RemoveAll(dir); err != nil; err = os.RemoveAll(dir) {
			if time.Now().After(deadline) {
				t.Errorf("removing what Chromium wrote: %v", err)
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	return dir
}

// tab is a page in the browser, with what it did that it should not.
type tab struct {
	testing.TB
	ctx  context.Context
	file string

	mu    sync.Mutex
	wrong []string // errors of the script, refusals of the policy, requests
}

// openPage writes the page of a graph and opens it, with hash as the address's
// last part. When the test ends, it must have requested nothing and thrown nothing.
func openPage(t testing.TB, browser context.Context, g *Graph, hash string) *tab {
	t.Helper()
	file := filepath.Join(t.TempDir(), "graph.html")
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Picture(g.Cycles()).WriteHTML(out, "Test fleet"); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, close := chromedp.NewContext(browser)
	t.Cleanup(close)
	ctx, cancel := context.WithTimeout(ctx, pageDeadline)
	t.Cleanup(cancel)
	p := &tab{TB: t, ctx: ctx, file: "file://" + file}
	note := func(format string, args ...any) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.wrong = append(p.wrong, fmt.Sprintf(format, args...))
	}
	chromedp.ListenTarget(ctx, func(ev any) {
		switch ev := ev.(type) {
		case *runtime.EventExceptionThrown:
			note("the script threw %s", ev.ExceptionDetails.Error())
		case *runtime.EventConsoleAPICalled:
			note("the script wrote to the console: %s", ev.Type)
		case *network.EventRequestWillBeSent:
			if url, _, _ := strings.Cut(ev.Request.URL, "#"); url != p.file && !strings.HasPrefix(url, "data:") {
				note("it requested %s", ev.Request.URL)
			}
		}
	})
	t.Cleanup(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, w := range p.wrong {
			t.Error(w)
		}
	})
	p.run(network.Enable(), chromedp.Navigate(p.file+hash))
	p.until(`document.documentElement.dataset.ready !== undefined`)
	return p
}

// run does things in the page.
func (p *tab) run(actions ...chromedp.Action) {
	p.Helper()
	if err := chromedp.Run(p.ctx, actions...); err != nil {
		p.Fatalf("in the page: %v", err)
	}
}

// until waits for an expression to be true.
func (p *tab) until(expression string) {
	p.Helper()
	for {
		var is bool
		p.run(chromedp.Evaluate(expression, &is))
		if is {
			return
		}
		select {
		case <-p.ctx.Done():
			p.Fatalf("%s did not become true", expression)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// value evaluates an expression, which may be a promise.
func value[T any](p *tab, expression string) (v T) {
	p.Helper()
	await := func(e *runtime.EvaluateParams) *runtime.EvaluateParams { return e.WithAwaitPromise(true) }
	p.run(chromedp.Evaluate(expression, &v, await))
	return v
}

// quoted is a Go value as a JavaScript literal.
func quoted(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// press sends keys to what has the focus: named ones of kb, and characters. A
// character's key and its text are one event, as in life, so that a handler may
// take it.
func (p *tab) press(keys ...string) {
	p.Helper()
	for _, k := range keys {
		if k < " " || k > "~" {
			p.run(chromedp.KeyEvent(k))
			continue
		}
		p.run(input.DispatchKeyEvent(input.KeyDown).WithKey(k).WithText(k), input.DispatchKeyEvent(input.KeyUp).WithKey(k))
	}
}

// click clicks the middle of a service's box in the picture.
func (p *tab) click(service string) {
	p.Helper()
	at := value[[]float64](p, `(() => { const s = bj.model.find(`+quoted(service)+`); bj.picture.reveal(s, true); const [x, y, w, h] = bj.picture.cell(s), r = document.getElementById("canvas").getBoundingClientRect(); return [r.left + (x + w / 2) * bj.picture.scale + bj.picture.ox, r.top + (y + h / 2) * bj.picture.scale + bj.picture.oy]; })()`)
	p.run(chromedp.MouseClickXY(at[0], at[1]))
}

// names of services by their numbers.
func (g *Graph) namesOf(numbers []int) []string {
	out := []string{}
	for _, n := range numbers {
		out = append(out, g.services[n].Name)
	}
	slices.Sort(out)
	return out
}
