package graph

import (
	"encoding/json"
	"fmt"
	"io"
)

// WriteJSON writes an answer as it is documented: indented, with a final
// newline.
func WriteJSON(w io.Writer, answer any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(answer); err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	return nil
}
