package ns

import (
	"context"

	"bj/sandbox"
)

type sealer struct{}

func (g *gateway) applySeal(ctx context.Context, p sandbox.Policy) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.hub.up()
}
func (g *gateway) flows() (flowsAnswer, error) { return flowsAnswer{}, nil }
func (g *gateway) rules() (string, error)      { return "", nil }
