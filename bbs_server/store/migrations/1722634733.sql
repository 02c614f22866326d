ALTER TABLE desired_lrps ADD COLUMN IF NOT EXISTS metric_tags TEXT;
