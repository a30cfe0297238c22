// The arithmetic of one step of Adam and LAMB: moments and update of one element, the trust ratio of one tensor.
// A step is (1) the moments, of the scaled gradient; (2) the update, m / (sqrt(v) + eps) and the decay; (3) the weight,
// minus rate * update. LAMB's rate is the learning rate times the tensor's trust ratio, Adam's the learning rate itself.
#pragma once

#include <cmath>

#include "shared/platform.h"

namespace bert_fast {

struct AdamRule {
    float beta1, rest1;          // rest = 1 - beta, from double: in float32 it would be off by 1e-5 of itself at 0.999
    float beta2, rest2;
    float log_beta1, log_beta2;  // natural logarithms
    float eps;
    float weight_decay;
    float lowest, highest;  // bounds of the trust ratio
    bool bias_correction;
    bool decoupled;  // decay is added to the update; otherwise to the gradient
};

inline AdamRule make_rule(double beta1, double beta2, double eps, double weight_decay, bool bias_correction,
                          bool decoupled, double lowest, double highest) {
    const auto narrow = [](double x) { return static_cast<float>(x); };
    return {narrow(beta1),         narrow(1 - beta1),     narrow(beta2), narrow(1 - beta2),
            narrow(std::log(beta1)), narrow(std::log(beta2)), narrow(eps),   narrow(weight_decay),
            narrow(lowest),        narrow(highest),       bias_correction, decoupled};
}

struct BiasCorrection {
    float m, v;  // what the moments are multiplied by
};

// 1 / (1 - beta^step). expm1 keeps the digits that 1 - beta^step would lose in the first steps.
BERT_FAST_HD BiasCorrection bias_correction(const AdamRule& rule, float step) {
    if (!rule.bias_correction) return {1, 1};
    return {-1.0f / expm1f(step * rule.log_beta1), -1.0f / expm1f(step * rule.log_beta2)};
}

BERT_FAST_HD void advance_moments(const AdamRule& rule, float gradient, float weight, float& m, float& v) {
    if (!rule.decoupled) gradient += rule.weight_decay * weight;
    m = rule.beta1 * m + rule.rest1 * gradient;
    v = rule.beta2 * v + rule.rest2 * gradient * gradient;
}

BERT_FAST_HD float update_of(const AdamRule& rule, BiasCorrection bias, float weight, float m, float v) {
    const float adam = m * bias.m / (sqrtf(v * bias.v) + rule.eps);
    return rule.decoupled ? adam + rule.weight_decay * weight : adam;
}

// ||w|| / ||update|| within its bounds, from the sums of squares; 1 where one of them is 0 or not a number.
BERT_FAST_HD float trust_ratio(const AdamRule& rule, float weight_squares, float update_squares) {
    if (!(weight_squares > 0 && update_squares > 0)) return 1;
    const float ratio = sqrtf(weight_squares) / sqrtf(update_squares);
    return fminf(fmaxf(ratio, rule.lowest), rule.highest);
}

// As torch.nn.utils.clip_grad_norm_: a norm that is not a number makes every gradient not a number, an infinite one
// makes the finite gradients 0.
BERT_FAST_HD float clip_factor(float norm, float max_norm) {
    const float factor = max_norm / (norm + 1e-6f);
    return factor > 1 ? 1 : factor;
}

}  // namespace bert_fast
