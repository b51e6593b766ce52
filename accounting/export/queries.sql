-- name: focus_rows
-- Rows of FOCUS 1.2: a charge for each statement line and for each adjustment. An adjustment is
-- billed with the period that it was posted in, and charged in the one that it corrects. Bytes
-- become GB of 10^9 bytes by a product, which is exact in numeric; a quotient would be rounded.
SELECT
    cost.amount AS "BilledCost",
    charge.user_key::text AS "BillingAccountId",
    nullif(charge.user_id, '') AS "BillingAccountName",
    :currency::text AS "BillingCurrency",
    billed.ends_at AS "BillingPeriodEnd",
    billed.starts_at AS "BillingPeriodStart",
    'Usage'::text AS "ChargeCategory",
    CASE WHEN charge.adjustment_id IS NOT NULL THEN 'Correction' END AS "ChargeClass",
    CASE WHEN charge.adjustment_id IS NULL
        THEN 'TURN relay traffic in the period ' || charge.used_in
        ELSE 'Correction of TURN relay traffic in the period ' || charge.used_in || ', '
            || charge.reason
        END || :price_words::text AS "ChargeDescription",
    'Usage-Based'::text AS "ChargeFrequency",
    used.ends_at AS "ChargePeriodEnd",
    used.starts_at AS "ChargePeriodStart",
    quantity.gigabytes AS "ConsumedQuantity",
    'GB'::text AS "ConsumedUnit",
    cost.amount AS "ContractedCost",
    price.unit_price AS "ContractedUnitPrice",
    cost.amount AS "EffectiveCost",
    NULL::text AS "InvoiceId",
    coalesce(:invoice_issuer::text, names.provider) AS "InvoiceIssuerName",
    cost.amount AS "ListCost",
    price.unit_price AS "ListUnitPrice",
    'Standard'::text AS "PricingCategory",
    quantity.gigabytes AS "PricingQuantity",
    'GB'::text AS "PricingUnit",
    names.provider AS "ProviderName",
    coalesce(:publisher::text, names.provider) AS "PublisherName",
    'Networking'::text AS "ServiceCategory",
    'TURN relay'::text AS "ServiceName",
    'Network Connectivity'::text AS "ServiceSubcategory",
    'turn-relay-traffic'::text AS "SkuId",
    'Relayed traffic'::text AS "SkuMeter",
    'turn-relay-traffic'::text AS "SkuPriceId",
    charge.adjustment_id::text AS "x_AdjustmentId",
    CASE WHEN charge.adjustment_id IS NOT NULL THEN charge.used_in END AS "x_CorrectedPeriod",
    charge.billed_in AS "x_Period",
    charge.realm AS "x_Realm",
    charge.received_bytes AS "x_ReceivedBytes",
    charge.sent_bytes AS "x_SentBytes"
FROM (
    SELECT realm, period AS billed_in, period AS used_in, user_id, user_key,
        received_bytes, sent_bytes, NULL::uuid AS adjustment_id, NULL::text AS reason
    FROM reporting.statements
    UNION ALL
    SELECT realm, posted_in, period, user_id, user_key,
        received_bytes, sent_bytes, adjustment_id, reason
    FROM reporting.adjustments
) charge
JOIN reporting.periods billed ON billed.realm = charge.realm AND billed.period = charge.billed_in
JOIN reporting.periods used ON used.realm = charge.realm AND used.period = charge.used_in
CROSS JOIN LATERAL (
    SELECT (charge.received_bytes::numeric + charge.sent_bytes) * 0.000000001 AS gigabytes
) quantity
CROSS JOIN LATERAL (
    SELECT coalesce(:price_per_gb::numeric,
        CASE WHEN charge.adjustment_id IS NULL THEN 0::numeric END) AS unit_price
) price
CROSS JOIN LATERAL (
    SELECT coalesce(quantity.gigabytes * :price_per_gb::numeric, 0) AS amount
) cost
CROSS JOIN LATERAL (
    SELECT coalesce(:provider::text, nullif(charge.realm, ''), 'TURN service') AS provider
) names
WHERE billed.closed_at IS NOT NULL;
