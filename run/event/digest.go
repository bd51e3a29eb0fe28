package event

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"bj/fleet"
)

// digestVersion changes when the same recipe would be run differently.
const digestVersion = "bj.digest/1"

// wordsOnly are fields that no run depends on: places and words for people.
var wordsOnly = map[string]bool{
	"pos": true, "stack": true, "doc": true, "file_doc": true, "modules": true, "why": true, "effort": true,
	"if_fails": true, "danger": true, "estimate": true, "tags": true, "where": true, "kept": true, "text": true,
}

// Digest returns a SHA-256, in hex, of what a run of r depends on: the recipe,
// its service's ports, and the endpoints that its conditions open. Places in
// the source and words for people are left out, so that moving a recipe or
// explaining it better does not make its results stale. What files hold is not
// part of it.
func Digest(f *fleet.Fleet, r *fleet.Recipe) string {
	in := struct {
		Version   string                     `json:"version"`
		Recipe    *fleet.Recipe              `json:"recipe"`
		Secrets   []string                   `json:"secrets"`
		Listens   []fleet.Ports              `json:"listens"`
		Endpoints map[string][]fleet.Pathway `json:"endpoints"`
		Image     *fleet.Image               `json:"image"`
	}{Version: digestVersion, Recipe: r, Image: f.Workspace.Image, Endpoints: map[string][]fleet.Pathway{}}
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
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// strip removes the fields of wordsOnly from v. A script's text is what runs,
// and stays.
func strip(v any) any {
	switch v := v.(type) {
	case map[string]any:
		_, script := v["machine"]
		for k, x := range v {
			if wordsOnly[k] && !(script && k == "text") {
				delete(v, k)
				continue
			}
			v[k] = strip(x)
		}
	case []any:
		for i := range v {
			v[i] = strip(v[i])
		}
	}
	return v
}

// Inputs returns a SHA-256, in hex, of what the files of r hold, which Digest
// leaves out; read returns the content of a file of the workspace. A file that
// cannot be read counts as such. It is empty if r brings no files.
func Inputs(r *fleet.Recipe, read func(path string) ([]byte, error)) string {
	sum := sha256.New()
	any := false
	for _, f := range r.Files {
		if f.Source == "" {
			continue
		}
		any = true
		data, err := read(f.Source)
		if err != nil {
			data = nil
		}
		fmt.Fprintf(sum, "%q %d %v\n", f.Source, len(data), err == nil)
		sum.Write(data)
	}
	if !any {
		return ""
	}
	return hex.EncodeToString(sum.Sum(nil))
}
