package cli

import "github.com/spf13/cobra"

// commands lists what makes each command, in the order of the help.
func commands() []func(*command) *cobra.Command {
	return []func(*command) *cobra.Command{
		newInitCmd, newValidateCmd, newTestCmd, newExplainCmd, newDiffCmd,
		newPublishCmd, newSwitchCmd, newRollbackCmd, newAbortCmd,
		newRolloutCmd, newStrategyCmd, newSettingsCmd,
		newStatusCmd, newHistoryCmd, newShowCmd, newExportCmd, newAuditCmd,
		newImportCmd, newSchemaCmd, newGCCmd, newKeepCmd, newPardonCmd, newRetireCmd, newRecoverCmd,
		newEtcdCmd, newVersionCmd,
	}
}
