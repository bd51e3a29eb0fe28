package runbook

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"bj/graph"
)

// Versions of what make setup keeps in a folder of the cache.
const (
	axeVersion = "4.14.1"
	vnuVersion = "26.9.27"
)

// kept returns the path of a file that make setup keeps, or skips the test.
func kept(t *testing.T, folder, file string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skipf("no folder for %s: %v", folder, err)
	}
	file = filepath.Join(cache, "bj-test", folder, "node_modules", filepath.FromSlash(file))
	if _, err := os.Stat(file); err != nil {
		t.Skipf("no %s: make setup installs it: %v", folder, err)
	}
	return file
}

// writeSite writes the sample's pages, and returns the folder.
func writeSite(t *testing.T) string {
	t.Helper()
	f := sample()
	b := book(t, f, "", proven(f, 1))
	dir := t.TempDir()
	write := func(name string, data []byte, err error) {
		t.Helper()
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name+".html"), data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range f.Recipes {
		p, err := b.Page(r)
		if err != nil {
			t.Fatal(err)
		}
		data, err := HTML(p)
		write(p.Name, data, err)
	}
	start, err := b.BlackStart(everywhere)
	if err != nil {
		t.Fatal(err)
	}
	data, err := HTML(start)
	write(start.Name, data, err)
	index, entries, err := b.Index(f.Recipes)
	if err != nil {
		t.Fatal(err)
	}
	g, err := graph.New(f, graph.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var svg bytes.Buffer
	if err := g.Picture(g.Cycles()).WriteSVG(&svg, "Recovery graph"); err != nil {
		t.Fatal(err)
	}
	data, err = IndexHTML(index, entries, svg.String())
	write(index.Name, data, err)
	return dir
}

// TestValidHTML has the Nu Html Checker read every kind of page.
func TestValidHTML(t *testing.T) {
	jar := kept(t, "vnu-jar-"+vnuVersion, "vnu-jar/build/dist/vnu.jar")
	java, err := exec.LookPath("java")
	if err != nil {
		t.Skipf("no java: make setup installs it: %v", err)
	}
	files, err := filepath.Glob(filepath.Join(writeSite(t), "*.html"))
	if err != nil || len(files) != 4 {
		t.Fatalf("%d pages: %v", len(files), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, java, append([]string{"-jar", jar, "--errors-only"}, files...)...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("the checker says: %v\n%s", err, out)
	}
}

// profile returns a folder for a browser's own files. Some of its processes end,
// and write there, a little later than itself.
func profile(t *testing.T) string {
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

// TestBrowser reads the pages in a real Chromium without any network. Nothing
// may be requested, thrown or refused.
func TestBrowser(t *testing.T) {
	dir := writeSite(t)
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("no Chromium on PATH: make test installs Debian's package chromium")
	}
	axe, err := os.ReadFile(kept(t, "axe-core-"+axeVersion, "axe-core/axe.min.js"))
	if err != nil {
		t.Fatal(err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(profile(t)),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND"), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true), chromedp.WSURLReadTimeout(time.Minute))
	all, stop := chromedp.NewExecAllocator(t.Context(), options...)
	defer stop()
	quiet := func(string, ...any) {}
	root, end := chromedp.NewContext(all, chromedp.WithErrorf(quiet), chromedp.WithLogf(quiet))
	defer end()
	if err := chromedp.Run(root); err != nil {
		t.Fatalf("starting Chromium: %v", err)
	}
	open := func(t *testing.T, name string, first ...chromedp.Action) (context.Context, func(...chromedp.Action)) {
		t.Helper()
		ctx, end := chromedp.NewContext(root)
		t.Cleanup(end)
		ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		t.Cleanup(cancel)
		address := "file://" + filepath.Join(dir, name+".html")
		var mu sync.Mutex
		var wrong []string
		chromedp.ListenTarget(ctx, func(ev any) {
			mu.Lock()
			defer mu.Unlock()
			switch ev := ev.(type) {
			case *runtime.EventExceptionThrown:
				wrong = append(wrong, "the script threw "+ev.ExceptionDetails.Error())
			case *network.EventRequestWillBeSent:
				if !strings.HasPrefix(ev.Request.URL, "file://"+dir) {
					wrong = append(wrong, "it requested "+ev.Request.URL)
				}
			case *cdppage.EventJavascriptDialogOpening:
				wrong = append(wrong, "a dialog opened: "+ev.Message)
			}
		})
		t.Cleanup(func() {
			mu.Lock()
			defer mu.Unlock()
			for _, w := range wrong {
				t.Error(w)
			}
		})
		run := func(actions ...chromedp.Action) {
			t.Helper()
			if err := chromedp.Run(ctx, actions...); err != nil {
				t.Fatal(err)
			}
		}
		run(append(append([]chromedp.Action{network.Enable(), cdppage.Enable()}, first...), chromedp.Navigate(address))...)
		return ctx, run
	}
	const page = "db=cold"

	t.Run("copy", func(t *testing.T) {
		_, run := open(t, page)
		var want, selected string
		var blocks, buttons int
		run(chromedp.Evaluate(`document.querySelectorAll("pre.sh").length`, &blocks), chromedp.Evaluate(`document.querySelectorAll("button").length`, &buttons))
		if blocks == 0 || buttons != blocks {
			t.Fatalf("%d commands have %d buttons", blocks, buttons)
		}
		var got string
		run(browser.GrantPermissions([]browser.PermissionType{browser.PermissionTypeClipboardReadWrite, browser.PermissionTypeClipboardSanitizedWrite}),
			chromedp.Evaluate(`document.querySelectorAll("pre.sh")[1].textContent`, &want),
			chromedp.Evaluate(`document.querySelectorAll("button")[1].focus()`, nil), chromedp.KeyEvent(kb.Enter),
			chromedp.Poll(`document.querySelectorAll("button")[1].textContent === "Copied"`, nil),
			chromedp.Evaluate(`navigator.clipboard.readText()`, &got, func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
		if got != strings.TrimSuffix(want, "\n") || !strings.Contains(want, "\n") {
			t.Errorf("the button copied %q, not %q", got, want)
		}
		// By hand, as without script.
		run(chromedp.Evaluate(`getSelection().selectAllChildren(document.querySelectorAll("pre.sh")[1]); document.execCommand("copy"); navigator.clipboard.readText()`, &selected, func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
		if strings.TrimSuffix(selected, "\n") != got {
			t.Errorf("selecting it copied %q, not %q", selected, got)
		}
	})
	t.Run("search", func(t *testing.T) {
		_, run := open(t, IndexName)
		var hits []string
		run(chromedp.SendKeys("#q", "10.0.0.11 configure", chromedp.ByID), chromedp.Evaluate(`[...document.querySelectorAll("#hits a")].map((a) => a.href)`, &hits))
		if len(hits) != 1 || !strings.HasSuffix(hits[0], "/db%3Dcold.html") {
			t.Fatalf("the search finds %v", hits)
		}
		run(chromedp.Click("#hits a", chromedp.ByQuery), chromedp.WaitVisible("pre.sh", chromedp.ByQuery))
	})
	t.Run("noscript", func(t *testing.T) {
		_, run := open(t, page, emulation.SetScriptExecutionDisabled(true))
		var words string
		run(chromedp.Text("main", &words, chromedp.ByQuery))
		for _, want := range []string{"9. Provenance", "Look at the lamp", "<script>alert(1)</script>", "Limit: 1m."} {
			if !strings.Contains(words, want) {
				t.Errorf("without script the page does not say %q", want)
			}
		}
	})
	t.Run("keyboard", func(t *testing.T) {
		_, run := open(t, page)
		seen := 0
		for range 60 {
			var at []string
			run(chromedp.KeyEvent(kb.Tab), chromedp.Evaluate(`[document.activeElement.tagName, getComputedStyle(document.activeElement).outlineStyle]`, &at))
			if at[0] == "BODY" {
				break
			}
			if seen++; at[1] == "none" {
				t.Errorf("a %s has the focus, and does not show it", at[0])
			}
		}
		if seen < 10 {
			t.Errorf("Tab reaches %d things", seen)
		}
	})
	t.Run("print", func(t *testing.T) {
		_, run := open(t, page, emulation.SetEmulatedMedia().WithMedia("print"))
		var button, whole, after string
		var pdf []byte
		run(chromedp.Evaluate(`getComputedStyle(document.querySelector("button")).display`, &button),
			chromedp.Evaluate(`[...document.querySelectorAll(".step, pre")].map((e) => getComputedStyle(e).breakInside).filter((v) => v !== "avoid").join()`, &whole),
			chromedp.Evaluate(`getComputedStyle(document.querySelector("section a[href]"), "::after").content`, &after),
			chromedp.ActionFunc(func(ctx context.Context) (err error) { pdf, _, err = cdppage.PrintToPDF().Do(ctx); return err }))
		if button != "none" || whole != "" || !strings.Contains(after, "store=cold.html") && !strings.Contains(after, "store%3Dcold.html") || !bytes.HasPrefix(pdf, []byte("%PDF")) {
			t.Errorf("on paper: buttons %s, breaks %q, links end with %s, %d bytes of PDF", button, whole, after, len(pdf))
		}
	})
	for _, scheme := range []string{"light", "dark"} {
		for _, size := range []int64{390, 1300} {
			for _, name := range []string{page, IndexName, BlackStartName} {
				t.Run(fmt.Sprintf("accessible/%s/%d/%s", scheme, size, name), func(t *testing.T) {
					_, run := open(t, name, emulation.SetDeviceMetricsOverride(size, 800, 1, size < 500),
						emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}))
					var wide, cut, small []string
					var found []string
					run(chromedp.Evaluate(fmt.Sprintf(`[document.documentElement, document.body].map((e) => e.scrollWidth).filter((w) => w > %d).map(String)`, size), &wide),
						chromedp.Evaluate(`[...document.querySelectorAll("pre, table, .table")].filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent.slice(0, 80))`, &cut),
						chromedp.Evaluate(`[...document.querySelectorAll("button, input, nav a")].filter((e) => e.getBoundingClientRect().height < 40).map((e) => e.textContent)`, &small), chromedp.Evaluate(string(axe), nil),
						chromedp.Evaluate(`axe.run(document, {resultTypes: ["violations"]}).then((r) => r.violations.map((v) => v.id + ": " + v.nodes.slice(0, 3).map((n) => n.html.slice(0, 160) + " " + n.failureSummary).join(" | ")))`, &found,
							func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
					if len(wide) > 0 {
						t.Errorf("the page is wider than its window: %v", wide)
					}
					if size < 500 && len(cut)+len(small) > 0 {
						t.Errorf("on a phone these are cut: %q, and these are hard to hit: %q", cut, small)
					}
					if len(found) > 0 {
						t.Error(strings.Join(found, "\n"))
					}
					if shots := os.Getenv("BJ_SCREENSHOTS"); shots != "" {
						var png []byte
						run(chromedp.FullScreenshot(&png, 90))
						_ = os.WriteFile(filepath.Join(shots, fmt.Sprintf("%s-%d-%s.jpg", scheme, size, name)), png, 0o644)
					}
				})
			}
		}
	}
}
