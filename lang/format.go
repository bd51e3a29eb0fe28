package lang

import (
	"errors"
	"fmt"

	"github.com/bazelbuild/buildtools/build"
	"go.starlark.net/syntax"

	"bj/lang/diag"
)

// Format returns the text of a file in the one layout that all files have,
// with a person's line breaks kept. The error is a diag.List if the text cannot
// be parsed: buildtools reads more than bj does, so bj's parser is asked first.
func Format(file string, src []byte) ([]byte, error) {
	if _, err := parse(file, src); err != nil {
		return nil, diag.List{syntaxDiagnostic(file, src, err)}
	}
	f, err := build.ParseDefault(file, src)
	if err != nil {
		var pe build.ParseError
		if errors.As(err, &pe) {
			pos := diag.Pos{File: file, Line: pe.Pos.Line, Col: pe.Pos.LineRune}
			return nil, diag.List{{Pos: pos, Severity: diag.Error, Rule: "syntax", Message: pe.Message, Source: NewSource(file, src).Line(pos.Line)}}
		}
		return nil, fmt.Errorf("formatting %s: %w", file, err)
	}
	out := build.FormatWithoutRewriting(f)
	if _, err := parse(file, out); err != nil {
		// Its printer writes some escapes in a way that Starlark refuses.
		d := syntaxDiagnostic(file, out, err)
		return nil, diag.List{{Pos: diag.Pos{File: file, Line: 1, Col: 1}, Severity: diag.Error, Rule: "syntax",
			Message: "the file cannot be laid out without a change of what it means: " + d.Message, Hint: "write what it means without escapes"}}
	}
	return out, nil
}

func syntaxDiagnostic(file string, src []byte, err error) diag.Diagnostic {
	d := diag.Diagnostic{Pos: diag.Pos{File: file, Line: 1, Col: 1}, Severity: diag.Error, Rule: "syntax", Message: err.Error()}
	var te *sourceError
	var se syntax.Error
	switch {
	case errors.As(err, &te):
		d.Pos, d.Message, d.Hint = te.pos, te.message, te.hint
	case errors.As(err, &se):
		d.Pos, d.Message = posOf(se.Pos), se.Msg
	}
	d.Source = NewSource(file, src).Line(d.Pos.Line)
	return d
}
