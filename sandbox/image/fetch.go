package image

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"bj/sandbox"
)

// fetch downloads a program and checks its digest before anything sees it. The
// digest alone is the key: where it once came from does not matter.
func (s *Store) fetch(ctx context.Context, t sandbox.Tool, progress func(string)) ([]sandbox.File, error) {
	m, err := s.cached(ctx, "sha256 "+t.SHA256, progress, func(work string) (made, error) {
		start := time.Now()
		progress(fmt.Sprintf("fetching %s from %s", t.Name, t.URL))
		tmp := filepath.Join(work, "out")
		if err := s.download(ctx, t.URL, tmp); err != nil {
			return made{}, fmt.Errorf("fetching %s: %w", t.URL, err)
		}
		digest, err := fileDigest(tmp)
		if err != nil {
			return made{}, err
		}
		if digest != t.SHA256 {
			return made{}, hint(fmt.Errorf("%s has the SHA-256 %s, but the recipe says %s", t.URL, digest, t.SHA256),
				"if the new content is what you want, write its digest; if not, somebody changed it")
		}
		m, err := s.keep(tmp, t.URL)
		if err == nil {
			progress(fmt.Sprintf("fetched %s in %s, %s", t.Name, seconds(time.Since(start)), megabytes(m.Size)))
		}
		return m, err
	})
	if err != nil {
		return nil, err
	}
	return program(t.Name, s.source(m), m.Digest, m.About), nil
}

func (s *Store) download(ctx context.Context, url, to string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := s.Client
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the server answers %s", resp.Status)
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	limit := orDefault(s.MaxSize, 4<<30)
	n, err := io.Copy(f, io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return err
	}
	if n > limit {
		return fmt.Errorf("it is larger than %s", megabytes(limit))
	}
	return f.Close()
}
