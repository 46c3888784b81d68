"""The rollout: steps of traffic, sequential tests between the arms, promotion or rollback."""
