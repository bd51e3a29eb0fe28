package event

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"bj/fleet"
)

// digestVersion changes when the same recipe would be run differently.
const digestVersion = "bj.digest/2"

// wordsOnly are fields that no run depends on: places and words for people.
var wordsOnly = map[string]bool{
	"pos": true, "stack": true, "doc": true, "file_doc": true, "modules": true, "why": true, "effort": true,
	"if_fails": true, "danger": true, "estimate": true, "tags": true, "where": true, "kept": true, "text": true,
}

// Digest returns a SHA-256, in hex, of what a run of r depends on: the recipe,
// its service's ports, the endpoints that its conditions open, and what the
// files hold that it brings. Places in the source and words for people are left
// out, so that moving a recipe or explaining it better does not make its
// results stale.
//
// Sum returns a digest of what a file or folder of the workspace holds, or of
// one at an absolute path, and "" if it cannot be read. With a nil sum, contents
// are left out. What an image holds is not part of it: the verdict names its
// root. Nor is what a package manager or Bazel brings for a name without a
// version.
func Digest(f *fleet.Fleet, r *fleet.Recipe, sum func(path string) string) string {
	in := struct {
		Version   string                     `json:"version"`
		Recipe    *fleet.Recipe              `json:"recipe"`
		Secrets   []string                   `json:"secrets"`
		Listens   []fleet.Ports              `json:"listens"`
		Endpoints map[string][]fleet.Pathway `json:"endpoints"`
		Image     *fleet.Image               `json:"image"`
		Contents  [][2]string                `json:"contents"`
	}{Version: digestVersion, Recipe: r, Image: f.Workspace.Image, Endpoints: map[string][]fleet.Pathway{}}
	if sum != nil {
		for _, path := range Sources(r) {
			in.Contents = append(in.Contents, [2]string{path, sum(path)})
		}
	}
	if s := f.Service(r.Service); s != nil {
		in.Listens = s.Listens
	}
	for _, s := range r.Secrets {
		in.Secrets = append(in.Secrets, s.Value)
	}
	for _, c := range r.Conditions {
		s := f.Service(c.Service)
		if s == nil {
			continue
		}
		for _, name := range c.Pathways {
			if p := s.Pathway(name); p != nil {
				in.Endpoints[s.Name] = append(in.Endpoints[s.Name], *p)
			}
		}
	}
	data, err := json.Marshal(in)
	if err != nil {
		panic(fmt.Sprintf("encoding recipe %s: %v", r.Label, err)) // plain values always encode
	}
	var tree any
	if err := json.Unmarshal(data, &tree); err != nil {
		panic(fmt.Sprintf("decoding recipe %s: %v", r.Label, err))
	}
	data, _ = json.Marshal(strip(tree)) // keys of maps are sorted
	digest := sha256.Sum256(data)
	return hex.EncodeToString(digest[:])
}

// strip removes the fields of wordsOnly from v. A script's text is what runs,
// and stays; so do names of services and variables, whatever they are.
func strip(v any) any {
	switch v := v.(type) {
	case map[string]any:
		_, script := v["machine"]
		for k, x := range v {
			names, isMap := x.(map[string]any)
			switch {
			case wordsOnly[k] && !(script && k == "text"):
				delete(v, k)
			case isMap && (k == "env" || k == "endpoints"):
				for name := range names {
					names[name] = strip(names[name])
				}
			default:
				v[k] = strip(x)
			}
		}
	case []any:
		for i := range v {
			v[i] = strip(v[i])
		}
	}
	return v
}

// Sources returns the files and folders whose contents go into a run of r, in
// the order in which it names them: sources of files and of secrets, programs,
// and folders of programs that are built.
func Sources(r *fleet.Recipe) []string {
	var out []string
	add := func(path string) {
		if path != "" && !slices.Contains(out, path) {
			out = append(out, path)
		}
	}
	for _, f := range r.Files {
		add(f.Source)
	}
	for _, s := range r.Secrets {
		add(s.Source)
	}
	for _, t := range r.Tools {
		add(t.Path)
		if dir, local := strings.CutPrefix(t.Go, "./"); local {
			add(dir)
		}
	}
	return out
}
