package http1

import "github.com/heddle-mesh/heddle/internal/proxy/syntax"

// IsToken reports whether a method may begin with c.
func IsToken(c byte) bool { return syntax.Token[c] }
