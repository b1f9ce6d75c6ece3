//go:build !linux

package redirect

import (
	"errors"
	"fmt"
)

// Apply needs Linux.
func Apply(Ruleset) error { return fmt.Errorf("redirect traffic: %w", errors.ErrUnsupported) }

// Remove needs Linux.
func Remove() error { return fmt.Errorf("end redirection: %w", errors.ErrUnsupported) }
