package run

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"bj/lang/diag"
	"bj/run/event"
	"bj/sandbox"
)

// staged is what became of a plan's tools.
type staged struct {
	files   toolFiles
	failure *failure
}

// toolFiles are the files of a plan's tools, by what the machines boot that they
// are for: what a package lacks there, for one, differs.
type toolFiles map[string][]sandbox.File

// of returns the files for a machine of that image.
func (t toolFiles) of(image *sandbox.Image) []sandbox.File { return t[imageKey(image)] }

// all returns every file once for each image.
func (t toolFiles) all() []sandbox.File {
	var all []sandbox.File
	for _, key := range slices.Sorted(maps.Keys(t)) {
		all = append(all, t[key]...)
	}
	return all
}

// imageKey tells images apart, wherever they are written down.
func imageKey(i *sandbox.Image) string {
	if i == nil {
		return ""
	}
	image := *i
	image.Pos = diag.Pos{}
	data, _ := json.Marshal(image)
	return string(data)
}

// images are those that a plan's machines boot, each once.
func (p *Plan) images() []*sandbox.Image {
	var images []*sandbox.Image
	for _, m := range p.Machines {
		if !slices.ContainsFunc(images, func(i *sandbox.Image) bool { return imageKey(i) == imageKey(m.Image) }) {
			images = append(images, m.Image)
		}
	}
	return images
}

// stage makes the tools of all plans and their suppliers into files, and the
// images of their machines, before any machine is leased. Equal lists of tools
// are made once for each image.
func (r *runner) stage(ctx context.Context, plans []*Plan) map[*Plan]staged {
	groups := map[string][]*Plan{} // by their tools
	owner := map[*Plan]string{}    // label of the recipe whose run asks first
	var order []string
	add := func(p *Plan, label string) {
		if p.Refusal != nil || owner[p] != "" {
			return
		}
		owner[p] = label
		data, _ := json.Marshal(p.Tools)
		key := string(data)
		for _, i := range p.images() {
			key += "\n" + imageKey(i)
		}
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], p)
	}
	for _, p := range plans {
		if p.Refusal != nil {
			continue
		}
		add(p, p.Label())
		for _, s := range p.Suppliers {
			add(s, p.Label())
		}
	}
	out := map[*Plan]staged{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, key := range order {
		all.Go(func() { // how much is built at once is the stager's affair, who knows then how much there is
			ps := groups[key]
			made := r.stageOne(ctx, ps[0], owner[ps[0]])
			mu.Lock()
			defer mu.Unlock()
			for _, p := range ps {
				out[p] = made
			}
		})
	}
	all.Wait()
	return out
}

// stageOne makes the tools of one plan, and tells how it goes.
func (r *runner) stageOne(ctx context.Context, p *Plan, label string) (out staged) {
	defer func() {
		if x := recover(); x != nil {
			out.failure = &failure{message: fmt.Sprintf("internal error while making tools: %v", x)}
		}
	}()
	if r.Stager == nil {
		if len(p.Tools) > 0 {
			out.failure = &failure{message: "the recipe brings tools, and nothing here can make them"}
		}
		return out
	}
	v := &voice{stream: r.stream, recipe: label, mask: newMask(p)}
	if label != p.Label() {
		v.supplier = p.Label()
	}
	out.files = toolFiles{}
	for _, i := range p.images() {
		files, err := r.Stager.Stage(ctx, slices.Clone(p.Tools), i, func(text string) {
			v.emit(event.Event{Event: event.Build, Text: text})
		})
		if err != nil {
			if f := stopped(ctx); f != nil {
				return staged{failure: f}
			}
			f := asFailure(err, "")
			if !strings.HasPrefix(f.message, "making ") {
				f.message = "making tools: " + f.message
			}
			return staged{failure: f}
		}
		out.files[imageKey(i)] = files
	}
	return out
}

// toolsFree says what came for free with the tools: in the stager's words,
// with digests, or else by name and source.
func toolsFree(p *Plan, files []sandbox.File) []string {
	var free []string
	for _, f := range files {
		if f.About == "" {
			continue
		}
		text := "tool " + f.About
		if f.Digest != "" {
			text += ", sha256 " + f.Digest
		}
		if !slices.Contains(free, text) {
			free = append(free, text)
		}
	}
	if len(free) > 0 {
		return free
	}
	for _, t := range p.Tools {
		free = append(free, fmt.Sprintf("tool %s: %s", t.Name, toolSource(t)))
	}
	return free
}

// DefaultJobs returns how many of plans can run at once on a machine with that
// many cores and bytes of free memory: one for each core, as long as the
// largest of them would find its memory that often.
func DefaultJobs(plans []*Plan, cores int, memory int64) int {
	var largest int64
	for _, p := range plans {
		need := p.memory()
		for _, s := range p.Suppliers {
			need += s.memory()
		}
		largest = max(largest, need)
	}
	jobs := cores
	if largest > 0 && memory > 0 {
		jobs = min(jobs, int(memory/largest))
	}
	return max(1, jobs)
}

// memory is what the plan's machines ask for, in bytes.
func (p *Plan) memory() (sum int64) {
	for _, m := range p.Machines {
		sum += m.Memory
	}
	return sum
}

func cores() int { return runtime.NumCPU() }

// freeMemory returns how much memory this host can give, in bytes; 0 if it does
// not say.
func freeMemory() int64 {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
			n, err := strconv.ParseInt(kib, 10, 64)
			if err != nil {
				return 0
			}
			return n << 10
		}
	}
	return 0
}
